package engine

import (
	"cmp"
	"slices"

	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/sched"
)

// shard is one worker's share of a step.
type shard struct {
	arena *torch.Arena
	works []sched.Work

	tokens, positions, table []int32
	segments                 []native.Segment
	last                     []native.Segment // the sampled rows alone, one a segment
	sampled                  []sched.Work     // the works that ask for a token
	rows                     []int32          // and the row whose logits give it
	calls                    []*call
	draws                    []draw
}

// cost estimates a work in arbitrary units: products grow with its rows,
// attention with the history that each of them sees.
func cost(w sched.Work) int { return len(w.Tokens) * (4096 + w.Start + len(w.Tokens)) }

// A step of few rows takes as long as its weights take to come from memory. Then the
// workers share each product, so that every weight comes once; otherwise each has
// sequences of its own. A float32 weight is read once and used twice a row: with
// togetherRows for each worker, reading and multiplying take alike where a core does four
// operations in the time of a byte. Of less than togetherBytes much stays in the cache.
const (
	togetherRows  = 8
	togetherBytes = 64 << 20
)

// together says whether all workers should share the products of a step.
func (e *Engine) together(plan []sched.Work) bool {
	rows := 0
	for _, w := range plan {
		rows += len(w.Tokens)
	}
	return len(e.shards) > 1 && rows <= togetherRows*len(e.shards) && e.weightBytes >= togetherBytes
}

// deal spreads a plan over the first n shards, the most expensive work first, each to
// the shard with the least.
func (e *Engine) deal(plan []sched.Work, n int) {
	for _, s := range e.shards {
		s.works = s.works[:0]
	}
	slices.SortStableFunc(plan, func(a, b sched.Work) int { return cmp.Compare(cost(b), cost(a)) })
	load := make([]int, n)
	for _, w := range plan {
		least := slices.Index(load, slices.Min(load))
		load[least] += cost(w)
		e.shards[least].works = append(e.shards[least].works, w)
	}
	for _, s := range e.shards {
		s.layOut(e.active)
	}
}

// layOut packs the rows of the works one after another.
func (s *shard) layOut(active map[sched.Ticket]*call) {
	s.tokens, s.positions, s.table, s.segments = s.tokens[:0], s.positions[:0], s.table[:0], s.segments[:0]
	s.last, s.sampled, s.rows, s.calls, s.draws = s.last[:0], s.sampled[:0], s.rows[:0], s.calls[:0], s.draws[:0]
	for _, w := range s.works {
		s.segments = append(s.segments, native.Segment{
			Row: int32(len(s.tokens)), Rows: int32(len(w.Tokens)), Past: int32(w.Start), Table: int32(len(s.table)),
		})
		s.tokens = append(s.tokens, w.Tokens...)
		for i := range w.Tokens {
			s.positions = append(s.positions, int32(w.Start+i))
		}
		s.table = append(s.table, w.Table...)
		if w.Sample {
			s.sampled = append(s.sampled, w)
			row := int32(len(s.tokens) - 1)
			s.rows = append(s.rows, row)
			s.last = append(s.last, native.Segment{
				Row: row, Rows: 1, Past: int32(w.Start + len(w.Tokens) - 1), Table: s.segments[len(s.segments)-1].Table,
			})
			s.calls = append(s.calls, active[w.Ticket])
		}
	}
}

// run computes the shard on the worker's thread, with the help of a team where there
// is one.
func (s *shard) run(e *Engine, team *device.Team) (err error) {
	defer torch.Catch(&err)
	if len(s.works) == 0 {
		return nil
	}
	scope := s.arena.Scope()
	defer scope.Close()
	p := e.policy
	if e.cache.Repeats() && s.decodes() {
		tokens, logprobs, sampled := e.cache.Decode(s.tokens, s.segments, s.table, s.asked(0, len(s.rows)))
		s.take(0, tokens, logprobs, sampled, nil)
		return nil
	}
	attend := e.cache.Attend(scope, team, s.segments, s.last, s.table)
	hidden := model.ForwardRows(p, scope, team, s.tokens, s.positions, s.rows, attend)
	size := p.LogitRows()
	for lo := 0; lo < len(s.rows); lo += size {
		hi := min(lo+size, len(s.rows))
		inner := scope.Nest()
		logits := model.Logits(p, inner, team, inner.Own(hidden.Rows(lo, hi)))
		tokens, logprobs, sampled := p.Sample(team, logits, s.asked(lo, hi))
		s.take(lo, tokens, logprobs, sampled, logits)
		inner.Close()
	}
	return nil
}

// decodes says whether every row is the one new token of a sequence, and tokens are all
// that is asked.
func (s *shard) decodes() bool {
	return len(s.sampled) == len(s.tokens) && !slices.ContainsFunc(s.calls, func(c *call) bool { return c.req.Alternatives > 0 })
}

// asked is how rows [lo, hi) of those sampled are drawn.
func (s *shard) asked(lo, hi int) (draws []model.Draw) {
	for _, c := range s.calls[lo:hi] {
		draws = append(draws, model.Draw{Sampling: c.sampling, U: c.stream.Uniform(c.position())})
	}
	return draws
}

// take records what was drawn for the calls from lo on, from logits where alternatives
// are asked for.
func (s *shard) take(lo int, tokens []int32, logprobs, sampled []float32, logits *torch.Tensor) {
	for i, token := range tokens {
		c := s.calls[lo+i]
		d := draw{token: token, logprob: logprobs[i], sampling: sampled[i], oldest: s.sampled[lo+i].Oldest}
		if n := c.req.Alternatives; n > 0 && d.token >= 0 {
			d.alternatives = alternatives(model.Row(logits, i), n, d.token, d.logprob)
		}
		s.draws = append(s.draws, d)
	}
}
