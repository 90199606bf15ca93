// Package tabular is a policy small enough to be exact: a softmax over the moves
// that a text offers, whose logits are a table by that text. It plays and learns
// through the interfaces that a transformer has (rollout.Policy, train.Learner),
// without libtorch, so that a game or a variant of an algorithm is tried in seconds.
//
// A text offers the letters and digits after its last colon, and a turn is one of
// them: "x.o...... moves: 2456789".
package tabular

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
)

// Chat is rollout.ByteChat for turns of one byte: every byte ends its turn.
type Chat struct{ rollout.ByteChat }

// Observation implements rollout.Chat.
func (Chat) Observation(text string, _ bool) []int32 {
	return rollout.ByteChat{}.Observation(text, false)
}

// Reply implements rollout.Replier.
func (Chat) Reply(text string) []int32 {
	ids := rollout.ByteChat{}.Reply(text)
	return ids[:len(ids)-1]
}

// StopTokens implements rollout.Chat.
func (Chat) StopTokens() []int32 {
	all := make([]int32, rollout.EndOfTurn)
	for i := range all {
		all[i] = int32(i)
	}
	return all
}

// Policy is a table that plays and learns. Its episodes go through Chat. It may
// generate concurrently, but not while it learns.
type Policy struct {
	rows    map[string]*row
	version int64
}

// row are the logits of a text's moves, their gradient, and AdamW's two moments.
type row struct {
	W, M, V []float64
	g       []float64
}

var (
	_ rollout.Policy  = (*Policy)(nil)
	_ rollout.Replier = Chat{}
	_ train.Learner   = (*Policy)(nil)
	_ train.Scorer    = (*Policy)(nil)
	_ train.Reference = (*Policy)(nil)
)

// New returns the policy that plays every move alike.
func New() *Policy { return &Policy{rows: map[string]*row{}} }

// Moves are the bytes that a text offers.
func Moves(text string) string {
	offer := text[strings.LastIndexByte(text, ':')+1:]
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return -1
	}, offer)
}

// Probabilities are those of the moves that a text offers, in their order.
func (p *Policy) Probabilities(text string) []float64 {
	logits := make([]float64, len(Moves(text)))
	if r := p.rows[text]; r != nil {
		copy(logits, r.W)
	}
	return softmax(logits, 1)
}

// softmax of the logits over a temperature, in place.
func softmax(x []float64, temperature float64) []float64 {
	if len(x) == 0 {
		return x
	}
	top, sum := slices.Max(x), 0.0
	for i, v := range x {
		x[i] = math.Exp((v - top) / temperature)
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
	return x
}

// shown is the text that the token after the history answers.
func shown(history []int32) (string, error) {
	end := len(history) - 1
	if end < 0 || history[end] != rollout.EndOfTurn {
		return "", fmt.Errorf("tabular: a history of %d tokens does not end with a message; render it with tabular.Chat", len(history))
	}
	from := end
	for from > 0 && history[from-1] != rollout.EndOfTurn {
		from--
	}
	text := rollout.ByteChat{}.Text(history[from:end])
	if Moves(text) == "" {
		return "", fmt.Errorf("tabular: the message %q offers no move: end it with a colon and letters or digits", text)
	}
	return text, nil
}

// Generate implements rollout.Policy: one move.
func (p *Policy) Generate(_ context.Context, req gen.Request) (gen.Completion, error) {
	if req.Sampling.TopK != 0 || req.Sampling.TopP != 0 && req.Sampling.TopP != 1 {
		return gen.Completion{}, fmt.Errorf("tabular: top-k %d and top-p %g are not supported; set a temperature", req.Sampling.TopK, req.Sampling.TopP)
	}
	text, err := shown(req.Tokens)
	if err != nil {
		return gen.Completion{}, err
	}
	own := p.Probabilities(text)
	drawn := make([]float64, len(own))
	best := slices.Index(own, slices.Max(own))
	drawn[best] = 1
	if req.Sampling.Temperature > 0 {
		for i, q := range own {
			drawn[i] = math.Log(q)
		}
		softmax(drawn, req.Sampling.Temperature)
	}
	u, at := gen.NewStream(req.Seed, req.ID).Uniform(len(req.Tokens)), 0
	for u -= drawn[0]; u >= 0 && at < len(drawn)-1; u -= drawn[at] {
		at++
	}
	return gen.Completion{
		Tokens:           []int32{int32(Moves(text)[at])},
		Logprobs:         []float32{float32(math.Log(own[at]))},
		SamplingLogprobs: []float32{float32(math.Log(drawn[at]))},
		Versions:         []int64{p.version},
		Finish:           gen.FinishStop,
	}, nil
}

// Version implements train.Learner.
func (p *Policy) Version() int64 { return p.version }

// move is a token of a batch that is trained on.
type move struct {
	text   string
	at     int // of the text's moves
	probs  []float64
	logged float64 // its log-probability, rounded as trajectories keep it
}

// moves are the trained tokens of a batch, by their places.
func (p *Policy) moves(b rl.Packed) (map[int]move, error) {
	all := map[int]move{}
	for s := range len(b.Offsets) - 1 {
		lo, hi := b.Offsets[s], b.Offsets[s+1]
		for k := lo + 1; k < hi; k++ {
			if !b.Mask[k] {
				continue
			}
			text, err := shown(b.Tokens[lo:k])
			if err != nil {
				return nil, err
			}
			at := strings.IndexByte(Moves(text), byte(b.Tokens[k]))
			if at < 0 {
				return nil, fmt.Errorf("tabular: the message %q does not offer %q", text, rune(b.Tokens[k]))
			}
			probs := p.Probabilities(text)
			all[k] = move{text, at, probs, float64(float32(math.Log(probs[at])))}
		}
	}
	return all, nil
}

// Accumulate implements train.Learner.
func (p *Policy) Accumulate(_ context.Context, batches []rl.Packed, fn train.GradientFunc) (err error) {
	defer func() {
		if err != nil {
			p.clear()
		}
	}()
	for i, b := range batches {
		moves, err := p.moves(b)
		if err != nil {
			return err
		}
		logprobs, entropies := make([]float64, len(b.Tokens)), make([]float64, len(b.Tokens))
		for k, m := range moves {
			logprobs[k] = m.logged
			for _, q := range m.probs {
				if q > 0 {
					entropies[k] -= q * math.Log(q)
				}
			}
		}
		gradient, err := fn(i, logprobs, entropies)
		if err != nil {
			return err
		}
		for _, k := range slices.Sorted(maps.Keys(moves)) { // sums have one order
			m := moves[k]
			r := p.row(m.text)
			for v, q := range m.probs {
				r.g[v] -= gradient[k] * q
			}
			r.g[m.at] += gradient[k]
		}
	}
	return nil
}

// row is the row of a text, made where it is new.
func (p *Policy) row(text string) *row {
	r := p.rows[text]
	if r == nil {
		n := len(Moves(text))
		r = &row{make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n)}
		p.rows[text] = r
	}
	return r
}

func (p *Policy) clear() {
	for _, r := range p.rows {
		clear(r.g)
	}
}

// Logprobs implements train.Scorer.
func (p *Policy) Logprobs(_ context.Context, batches []rl.Packed) ([][]float64, error) {
	return p.score(batches, func(m move) float64 { return m.logged })
}

// ReferenceLogprobs implements train.Reference: the reference plays every move alike.
func (p *Policy) ReferenceLogprobs(_ context.Context, batches []rl.Packed) ([][]float64, error) {
	return p.score(batches, func(m move) float64 { return -math.Log(float64(len(m.probs))) })
}

func (p *Policy) score(batches []rl.Packed, of func(move) float64) ([][]float64, error) {
	out := make([][]float64, len(batches))
	for i, b := range batches {
		moves, err := p.moves(b)
		if err != nil {
			return nil, err
		}
		out[i] = make([]float64, len(b.Tokens))
		for k, m := range moves {
			out[i][k] = of(m)
		}
	}
	return out, nil
}

// Step implements train.Learner.
func (p *Policy) Step(_ context.Context, o train.AdamW) (float64, error) {
	defer p.clear()
	texts := slices.Sorted(maps.Keys(p.rows))
	var ss float64
	for _, text := range texts {
		for _, g := range p.rows[text].g {
			ss += g * g
		}
	}
	norm, scale := math.Sqrt(ss), 1.0
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return norm, fmt.Errorf("tabular: the gradient's norm is %v: %w", norm, rl.ErrNonFinite)
	}
	if o.Clip > 0 && norm > o.Clip {
		scale = o.Clip / norm
	}
	p.version++
	c1, c2 := 1-math.Pow(o.Beta1, float64(p.version)), 1-math.Pow(o.Beta2, float64(p.version))
	for _, text := range texts {
		r := p.rows[text]
		for i, g := range r.g {
			g *= scale
			r.M[i] = o.Beta1*r.M[i] + (1-o.Beta1)*g
			r.V[i] = o.Beta2*r.V[i] + (1-o.Beta2)*g*g
			r.W[i] -= o.LR * (r.M[i]/c1/(math.Sqrt(r.V[i]/c2)+o.Eps) + o.WeightDecay*r.W[i])
		}
	}
	return norm, nil
}

const fileName = "table.json"

type file struct {
	Version int64           `json:"version"`
	Rows    map[string]*row `json:"rows"`
}

// Save implements train.Learner.
func (p *Policy) Save(dir string) error {
	data, err := json.Marshal(file{p.version, p.rows})
	if err != nil {
		return fmt.Errorf("tabular: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, fileName), data, 0o644)
}

// Load implements train.Learner.
func (p *Policy) Load(dir string) error {
	path := filepath.Join(dir, fileName)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f := file{Rows: map[string]*row{}}
	if err := json.Unmarshal(data, &f); err != nil {
		return fmt.Errorf("tabular: %s: %w", path, err)
	}
	for text, r := range f.Rows {
		n := len(Moves(text))
		if r == nil || len(r.W) != n || len(r.M) != n || len(r.V) != n {
			return fmt.Errorf("tabular: %s: the row of %q does not have the %d moves that it offers", path, text, n)
		}
		r.g = make([]float64, n)
	}
	p.version, p.rows = f.Version, f.Rows
	return nil
}
