package tabular

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
)

// history renders messages, each answered by a move but the last.
func history(texts ...string) (tokens []int32, trained []bool) {
	add := func(ids []int32, own bool) {
		tokens = append(tokens, ids...)
		for range ids {
			trained = append(trained, own)
		}
	}
	add(Chat{}.Prompt([]rollout.Message{{Role: "user", Content: texts[0]}}), false)
	for i := 1; i < len(texts); i += 2 {
		add(Chat{}.Reply(texts[i]), true)
		if i+1 < len(texts) {
			add(Chat{}.Observation(texts[i+1], true), false)
		}
	}
	return tokens, trained
}

func batch(t *testing.T, texts ...string) rl.Packed {
	t.Helper()
	tokens, trained := history(texts...)
	packed, err := rl.Pack([]rl.Sequence{{ID: "a", Tokens: tokens, Trained: trained}}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	return packed[0]
}

// TestGradient holds the gradient of Σ weight·logprob against finite differences
// in every logit.
func TestGradient(t *testing.T) {
	p := New()
	b := batch(t, "left or right: lr", "l", "up or down: ud", "d", "left or right: lr", "r")
	weights := map[int]float64{}
	weighted := func() (sum float64) {
		moves, err := p.moves(b)
		if err != nil {
			t.Fatal(err)
		}
		for k, m := range moves {
			sum += weights[k] * math.Log(m.probs[m.at])
		}
		return sum
	}
	gradient := make([]float64, len(b.Tokens))
	for k, trained := range b.Mask {
		if trained {
			weights[k] = float64(k%5) - 1.7
			gradient[k] = weights[k]
		}
	}
	if len(weights) != 3 {
		t.Fatalf("%d tokens are trained on, want 3", len(weights))
	}
	copy(p.row("left or right: lr").W, []float64{0.3, -0.4})
	copy(p.row("up or down: ud").W, []float64{-1, 0.5})
	err := p.Accumulate(t.Context(), []rl.Packed{b}, func(_ int, logprobs, entropies []float64) ([]float64, error) {
		for k := range weights {
			if math.Abs(entropies[k]) < 0.1 || logprobs[k] >= 0 {
				t.Errorf("token %d has entropy %g and log-probability %g", k, entropies[k], logprobs[k])
			}
		}
		return gradient, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for text, r := range p.rows {
		for i := range r.W {
			const h = 1e-6
			w := r.W[i]
			r.W[i] = w + h
			up := weighted()
			r.W[i] = w - h
			down := weighted()
			r.W[i] = w
			if want := (up - down) / (2 * h); math.Abs(r.g[i]-want) > 1e-8 {
				t.Errorf("%q: gradient of logit %d is %g, by differences %g", text, i, r.g[i], want)
			}
		}
	}

	// After an error nothing remains accumulated.
	sentinel := errors.New("no")
	if err := p.Accumulate(t.Context(), []rl.Packed{b}, func(int, []float64, []float64) ([]float64, error) { return nil, sentinel }); !errors.Is(err, sentinel) {
		t.Errorf("error %v", err)
	}
	if norm, err := p.Step(t.Context(), train.DefaultAdamW()); norm != 0 || err != nil {
		t.Errorf("a norm of %g after an error, %v", norm, err)
	}
}

// TestStep: AdamW's first step moves each logit by the learning rate, against its
// gradient's sign, and a norm that is not finite changes nothing.
func TestStep(t *testing.T) {
	p := New()
	copy(p.row(":ab").g, []float64{3, -4})
	norm, err := p.Step(t.Context(), train.AdamW{LR: 0.1, Beta1: 0.9, Beta2: 0.95, Eps: 1e-12, Clip: 1})
	if err != nil || math.Abs(norm-5) > 1e-12 || p.Version() != 1 {
		t.Fatalf("norm %g, version %d, %v; want 5 and 1", norm, p.Version(), err)
	}
	if w := p.rows[":ab"].W; math.Abs(w[0]+0.1) > 1e-9 || math.Abs(w[1]-0.1) > 1e-9 {
		t.Errorf("logits %v, want −0.1 and 0.1", w)
	}
	p.row(":ab").g[0] = math.NaN()
	if _, err := p.Step(t.Context(), train.DefaultAdamW()); !errors.Is(err, rl.ErrNonFinite) || p.Version() != 1 || p.rows[":ab"].g[0] != 0 {
		t.Errorf("after a NaN: %v, version %d, gradient %v", err, p.Version(), p.rows[":ab"].g)
	}

	dir := t.TempDir()
	if err := p.Save(dir); err != nil {
		t.Fatal(err)
	}
	q := New()
	if err := q.Load(dir); err != nil {
		t.Fatal(err)
	}
	if a, b := p.rows[":ab"], q.rows[":ab"]; q.Version() != 1 || a.W[0] != b.W[0] || a.M[1] != b.M[1] || a.V[0] != b.V[0] {
		t.Errorf("read back %v of %v", *b, *a)
	}
}

// TestGenerate draws as often as the table says, and reports the probability that
// learning recomputes.
func TestGenerate(t *testing.T) {
	p := New()
	copy(p.row("pick: abc").W, []float64{1, 0, -1})
	tokens, _ := history("pick: abc")
	want := p.Probabilities("pick: abc")
	counts := map[int32]float64{}
	const n = 20000
	for seed := range uint64(n) {
		c, err := p.Generate(t.Context(), gen.Request{ID: "x", Seed: seed, Tokens: tokens, MaxTokens: 1, Sampling: gen.Sampling{Temperature: 1}})
		if err != nil {
			t.Fatal(err)
		}
		counts[c.Tokens[0]]++
		if c.Logprobs[0] != float32(math.Log(want[c.Tokens[0]-'a'])) || c.Logprobs[0] != c.SamplingLogprobs[0] {
			t.Fatalf("%c has the log-probability %v", c.Tokens[0], c.Logprobs)
		}
	}
	for i, q := range want {
		if d := counts[int32('a'+i)]/n - q; math.Abs(d) > 5*math.Sqrt(q*(1-q)/n) {
			t.Errorf("move %d is drawn too often by %g", i, d)
		}
	}
	c, err := p.Generate(t.Context(), gen.Request{ID: "x", Tokens: tokens, MaxTokens: 1})
	if err != nil || c.Tokens[0] != 'a' {
		t.Errorf("greedily it plays %v, %v", c.Tokens, err)
	}
	for _, bad := range [][]int32{nil, {'a'}, Chat{}.Prompt([]rollout.Message{{Content: "nothing to choose:"}})} {
		if _, err := p.Generate(context.Background(), gen.Request{Tokens: bad}); err == nil {
			t.Errorf("the history %v is answered", bad)
		}
	}
}
