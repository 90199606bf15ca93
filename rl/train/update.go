package train

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/ssr-go/ssr/rl"
)

// updater turns sequences into optimizer steps.
type updater struct {
	learner    Learner
	objective  rl.Objective
	references bool // the objective wants reference log-probabilities
	old        bool // the objective wants those of the policy before the step's updates
	// record, where not nil, is given the batch of the first update of a step.
	record func(*rl.Recorded) error
	updateSettings
}

type updateSettings struct {
	budget     int // of tokens in a micro-batch
	optimizer  AdamW
	schedule   Schedule
	maxSkipped int
}

func newUpdater(l Learner, objective string, loss rl.Settings, s updateSettings) (*updater, error) {
	o, err := rl.New(objective, loss)
	if err != nil {
		return nil, err
	}
	u := &updater{learner: l, objective: o, references: rl.NeedsReference(o), old: loss.Anchor == rl.AnchorOld, updateSettings: s}
	if _, ok := l.(Reference); u.references && !ok {
		return nil, fmt.Errorf("objective %s with kl_coef %g reads a reference policy, but this learner has none; set kl_coef to 0 or name another objective", objective, loss.KLCoef)
	}
	return u, nil
}

// run takes one optimizer step for each minibatch and counts them in st. A step
// whose loss or gradient is not finite is skipped; too many in a row are an error.
func (u *updater) run(ctx context.Context, st *state, minibatches [][]rl.Sequence) (UpdateMetrics, error) {
	m := UpdateMetrics{LR: u.optimizer.LR * u.schedule.Factor(st.Updates)}
	if u.old && len(minibatches) > 1 { // a single update's own are the old ones
		if err := u.scoreOld(ctx, minibatches); err != nil {
			return m, err
		}
	}
	for k, seqs := range minibatches {
		one, err := u.step(ctx, seqs, u.schedule.Factor(st.Updates), k == 0 && u.record != nil)
		m.MicroBatches += one.microBatches
		if errors.Is(err, rl.ErrNonFinite) {
			st.Skipped++
			st.SkippedInRow++
			if st.SkippedInRow >= u.maxSkipped {
				return m, fmt.Errorf("%d updates in a row were skipped; lower the learning rate or look at the last checkpoint: %w", st.SkippedInRow, err)
			}
			continue
		}
		if err != nil {
			return m, err
		}
		st.Updates++
		st.SkippedInRow = 0
		m.merge(one, k == 0)
	}
	m.finish()
	m.Version, m.Skipped = u.learner.Version(), st.Skipped
	return m, nil
}

// pack makes micro-batches within the budget, of which every replica of the learner has
// about as much to do.
func (u *updater) pack(seqs []rl.Sequence) ([]rl.Packed, error) {
	replicas := 1
	if r, ok := u.learner.(Replicated); ok {
		replicas = r.Replicas()
	}
	return rl.PackEvenly(seqs, u.budget, replicas)
}

// scoreOld gives the sequences of all minibatches their log-probabilities before
// the first update.
func (u *updater) scoreOld(ctx context.Context, minibatches [][]rl.Sequence) error {
	scorer, ok := u.learner.(Scorer)
	if !ok {
		return errors.New("several updates a step around the policy that began it (anchor old) need a learner that scores tokens")
	}
	byID := map[string]rl.Sequence{}
	for _, seqs := range minibatches {
		for _, s := range seqs {
			byID[s.ID] = s
		}
	}
	packed, err := u.pack(slices.Collect(maps.Values(byID)))
	if err != nil {
		return err
	}
	logprobs, err := scorer.Logprobs(ctx, packed)
	if err != nil {
		return fmt.Errorf("log-probabilities before the updates: %w", err)
	}
	old := map[string][]float64{}
	for i, p := range packed {
		for s, id := range p.IDs {
			old[id] = logprobs[i][p.Offsets[s]:p.Offsets[s+1]]
		}
	}
	for _, seqs := range minibatches {
		for k := range seqs {
			seqs[k].OldLogprobs = old[seqs[k].ID]
		}
	}
	return nil
}

// outcome is one optimizer step.
type outcome struct {
	microBatches int
	loss, norm   float64
	entropy      *float64
	metrics      map[string]float64
}

// step takes one optimizer step. Sequences that the objective does not need are not
// computed, but count in what it divides by.
func (u *updater) step(ctx context.Context, seqs []rl.Sequence, factor float64, record bool) (outcome, error) {
	out := outcome{metrics: map[string]float64{}}
	busy, idle := rl.Divide(u.objective, seqs)
	totals := rl.TotalsOf(seqs)
	totals.Idle = rl.TotalsOf(idle).Tokens
	packed, err := u.pack(busy)
	if err != nil {
		return out, err
	}
	out.microBatches = len(packed)
	if u.references {
		refs, err := u.learner.(Reference).ReferenceLogprobs(ctx, packed)
		if err != nil {
			return out, fmt.Errorf("reference log-probabilities: %w", err)
		}
		for i := range packed {
			packed[i].ReferenceLogprobs = refs[i]
		}
	}
	results := make([]rl.Result, len(packed))
	batches := make([]rl.Batch, len(packed))
	entropies := make([]float64, len(packed))
	measured := make([]bool, len(packed))
	var mu sync.Mutex // objectives serve one goroutine at a time
	err = u.learner.Accumulate(ctx, packed, func(i int, logprobs, entropy []float64) ([]float64, error) {
		mu.Lock()
		defer mu.Unlock()
		b := packed[i].Batch(logprobs, totals)
		if u.old && b.OldLogprobs == nil {
			b.OldLogprobs = logprobs
		}
		r, err := u.objective.Evaluate(b)
		if err != nil {
			return nil, err
		}
		results[i] = r
		if record { // the slices given here are not kept by the learner's contract
			b.Logprobs, b.OldLogprobs = slices.Clone(b.Logprobs), slices.Clone(b.OldLogprobs)
			batches[i] = b
		}
		if entropy != nil {
			measured[i] = true
			for k, trained := range packed[i].Mask {
				if trained {
					entropies[i] += entropy[k]
				}
			}
		}
		return r.Grad, nil
	})
	if err != nil {
		return out, fmt.Errorf("accumulate gradients: %w", err)
	}
	if record {
		rest, err := u.describeIdle(ctx, idle, totals)
		if err == nil {
			err = u.record(rl.Record(append(batches, rest...)))
		}
		if err != nil {
			return out, fmt.Errorf("record the batch: %w", err)
		}
	}
	opt := u.optimizer
	opt.LR *= factor
	if out.norm, err = u.learner.Step(ctx, opt); err != nil {
		return out, fmt.Errorf("optimizer step: %w", err)
	}
	var entropy float64
	all := true
	for i, r := range results {
		out.loss += r.Loss
		rl.MergeMetrics(out.metrics, r.Metrics)
		entropy += entropies[i]
		all = all && measured[i]
	}
	if n := totals.Tokens - totals.Idle; all && n > 0 {
		entropy /= float64(n)
		out.entropy = &entropy
	}
	return out, nil
}

// describeIdle is what a record has of sequences that the update does not compute.
func (u *updater) describeIdle(ctx context.Context, idle []rl.Sequence, totals rl.Totals) ([]rl.Batch, error) {
	scorer, ok := u.learner.(Scorer)
	if len(idle) == 0 || !ok {
		return nil, nil
	}
	packed, err := u.pack(idle)
	if err != nil {
		return nil, err
	}
	logprobs, err := scorer.Logprobs(ctx, packed)
	if err != nil {
		return nil, err
	}
	batches := make([]rl.Batch, len(packed))
	for i := range packed {
		batches[i] = packed[i].Batch(logprobs[i], totals)
		if u.old && batches[i].OldLogprobs == nil {
			batches[i].OldLogprobs = logprobs[i]
		}
	}
	return batches, nil
}

// merge adds up; finish divides.
func (m *UpdateMetrics) merge(o outcome, first bool) {
	m.Updates++
	accumulate(&m.Loss, &o.loss)
	accumulate(&m.GradNorm, &o.norm)
	accumulate(&m.Entropy, o.entropy)
	if gap, ok := o.metrics["logprob_gap_max"]; ok && first {
		m.LogprobGap = &gap
	}
	if m.Objective == nil {
		m.Objective = map[string]float64{}
	}
	rl.MergeMetrics(m.Objective, o.metrics)
}

func (m *UpdateMetrics) finish() {
	n := float64(max(1, m.Updates))
	for _, p := range []*float64{m.Loss, m.GradNorm, m.Entropy} {
		if p != nil {
			*p /= n
		}
	}
	for name, v := range m.Objective {
		if !rl.IsExtreme(name) {
			m.Objective[name] = v / n
		}
	}
}

func accumulate(sum **float64, v *float64) {
	if v == nil {
		return
	}
	if *sum == nil {
		*sum = new(float64)
	}
	**sum += *v
}

// minibatches orders sequences for epochs passes in n updates each. A single
// update takes them as they are.
func minibatches(seqs []rl.Sequence, epochs, n int, seed uint64, step int) [][]rl.Sequence {
	if len(seqs) == 0 {
		return nil
	}
	if epochs == 1 && n == 1 {
		return [][]rl.Sequence{seqs}
	}
	n = min(n, len(seqs))
	var out [][]rl.Sequence
	for epoch := range epochs {
		order := shuffled(len(seqs), seed, uint64(step)<<16|uint64(epoch))
		for k := range n {
			var part []rl.Sequence
			for _, i := range order[k*len(seqs)/n : (k+1)*len(seqs)/n] {
				part = append(part, seqs[i])
			}
			out = append(out, part)
		}
	}
	return out
}

// shuffled is a permutation of n that depends on the seed and the stream only.
func shuffled(n int, seed, stream uint64) []int {
	return rand.New(rand.NewPCG(seed, stream)).Perm(n)
}
