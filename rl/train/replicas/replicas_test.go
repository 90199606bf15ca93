package replicas_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/kernels/collective"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vocab = 9

// bigram is a policy in a few lines: the logits of a token are a row of weights,
// chosen by the token before it.
type bigram struct {
	weights, grad, mean, square []float64
	lo, hi                      int
	version                     int64
	// failAccumulate, failBackward, failGradient and failUpdate are returned where not nil.
	failAccumulate, failBackward, failGradient, failUpdate error
}

// newBigram has shard i of n of the optimizer's state.
func newBigram(i, n int) *bigram {
	rng := rand.New(rand.NewPCG(3, 3))
	const all = vocab * vocab
	b := &bigram{weights: make([]float64, all), grad: make([]float64, all), lo: all * i / n, hi: all * (i + 1) / n, version: 10}
	b.mean, b.square = make([]float64, b.hi-b.lo), make([]float64, b.hi-b.lo)
	for i := range b.weights {
		b.weights[i] = rng.NormFloat64()
	}
	return b
}

func (b *bigram) Version() int64               { return b.version }
func (b *bigram) Len() int                     { return len(b.weights) }
func (b *bigram) Shard() (lo, hi int)          { return b.lo, b.hi }
func (b *bigram) Gradient() ([]float64, error) { return b.grad, b.failGradient }
func (b *bigram) Clear()                       { clear(b.grad) }

func (b *bigram) softmax(prev int32) (p [vocab]float64) {
	sum := 0.0
	for i, x := range b.weights[int(prev)*vocab:][:vocab] {
		p[i] = math.Exp(x)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// Accumulate adds the last batch's gradient row by row, the last row first.
func (b *bigram) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(from int)) error {
	for i, batch := range batches {
		if b.failAccumulate != nil {
			return b.failAccumulate
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		gradient, err := fn(i, b.logprobs(batch), nil)
		if err != nil {
			return err
		}
		for prev := int32(vocab - 1); prev >= 0; prev-- {
			row, p := b.grad[int(prev)*vocab:][:vocab], b.softmax(prev)
			for t, m := range batch.Mask {
				if !m || batch.Tokens[t-1] != prev {
					continue
				}
				for v := range row {
					row[v] -= gradient[t] * p[v]
				}
				row[batch.Tokens[t]] += gradient[t]
			}
			if i == len(batches)-1 {
				if b.failBackward != nil && prev == vocab/2 {
					return b.failBackward
				}
				final(int(prev) * vocab)
			}
		}
	}
	return nil
}

func (b *bigram) logprobs(batch rl.Packed) []float64 {
	out := make([]float64, len(batch.Tokens))
	for t, m := range batch.Mask {
		if m {
			out[t] = math.Log(b.softmax(batch.Tokens[t-1])[batch.Tokens[t]])
		}
	}
	return out
}

func (b *bigram) Logprobs(_ context.Context, batches []rl.Packed) (out [][]float64, err error) {
	for _, batch := range batches {
		out = append(out, b.logprobs(batch))
	}
	return out, b.failAccumulate
}

func (b *bigram) Squares() (sum float64, err error) {
	for _, g := range b.grad[b.lo:b.hi] {
		sum += g * g
	}
	return sum, nil
}

func (b *bigram) Update(o train.AdamW, scale float64, share func([]float64) error) error {
	if b.failUpdate != nil {
		return b.failUpdate
	}
	b.version++
	adamw(o, b.version-10, scale, b.weights[b.lo:b.hi], b.grad[b.lo:b.hi], b.mean, b.square)
	return share(b.weights)
}

func adamw(o train.AdamW, step int64, scale float64, w, g, m, v []float64) {
	for i := range w {
		gi := g[i] * scale
		m[i] = o.Beta1*m[i] + (1-o.Beta1)*gi
		v[i] = o.Beta2*v[i] + (1-o.Beta2)*gi*gi
		mh, vh := m[i]/(1-math.Pow(o.Beta1, float64(step))), v[i]/(1-math.Pow(o.Beta2, float64(step)))
		w[i] -= o.LR * (mh/(math.Sqrt(vh)+o.Eps) + o.WeightDecay*w[i])
	}
}

func batches(seed uint64) (out []rl.Packed) {
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 7 {
		n := 3 + rng.IntN(20)
		b := rl.Packed{Offsets: []int{0, n}}
		for t := range n {
			b.Tokens = append(b.Tokens, int32(rng.IntN(vocab)))
			b.Mask = append(b.Mask, t > 0)
			b.Advantages = append(b.Advantages, rng.NormFloat64())
		}
		out = append(out, b)
	}
	return out
}

var opt = train.AdamW{LR: 0.05, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, Clip: 2}

// objective is the policy gradient, of batch i whoever computes it.
func objective(all []rl.Packed) train.GradientFunc {
	return func(i int, logprobs, _ []float64) ([]float64, error) {
		if len(logprobs) != len(all[i].Tokens) {
			return nil, fmt.Errorf("batch %d has %d tokens, got %d", i, len(all[i].Tokens), len(logprobs))
		}
		out := make([]float64, len(logprobs))
		for t := range out {
			out[t] = -all[i].Advantages[t]
		}
		return out, nil
	}
}

func group(t *testing.T, n int) (*replicas.Group[[]float64], []*bigram) {
	t.Helper()
	var all []replicas.Replica[[]float64]
	var policies []*bigram
	for i := range n {
		b := newBigram(i, n)
		all, policies = append(all, b), append(policies, b)
	}
	g, err := replicas.New(all, collective.NewLocal(n, collective.Slices[float64]{}))
	if err != nil {
		t.Fatal(err)
	}
	return g, policies
}

// TestSameTraining: any number of replicas trains as one loop over everything does,
// within rounding; on equal numbers bit for bit.
func TestSameTraining(t *testing.T) {
	const steps = 12
	alone := newBigram(0, 1)
	var norms []float64
	for step := range int64(steps) {
		all := batches(uint64(step))
		if err := alone.Accumulate(t.Context(), all, objective(all), func(int) {}); err != nil {
			t.Fatal(err)
		}
		sum, _ := alone.Squares()
		norms = append(norms, math.Sqrt(sum))
		adamw(opt, step+1, min(1, opt.Clip/math.Sqrt(sum)), alone.weights, alone.grad, alone.mean, alone.square)
		alone.Clear()
	}
	for _, n := range []int{1, 2, 4, 9} {
		var first []float64
		for range 2 {
			g, policies := group(t, n)
			for step := range steps {
				all := batches(uint64(step))
				if err := g.Accumulate(t.Context(), all, objective(all)); err != nil {
					t.Fatal(err)
				}
				norm, err := g.Step(t.Context(), opt)
				if err != nil || math.Abs(norm-norms[step]) > 1e-10*norms[step] {
					t.Fatalf("%d replicas, step %d: norm %v, want %v (%v)", n, step, norm, norms[step], err)
				}
			}
			if g.Version() != 10+steps {
				t.Errorf("version %d", g.Version())
			}
			for r, p := range policies {
				for i, w := range p.weights {
					if math.Abs(w-alone.weights[i]) > 1e-9 {
						t.Fatalf("%d replicas, number %d: weight %d is %v, alone %v", n, r, i, w, alone.weights[i])
					}
					if w != policies[0].weights[i] || first != nil && w != first[i] {
						t.Fatalf("%d replicas, number %d: weight %d differs between replicas or runs", n, r, i)
					}
				}
			}
			scores, err := g.Logprobs(t.Context(), batches(99))
			for i, b := range batches(99) {
				for k, want := range policies[0].logprobs(b) {
					if err != nil || scores[i][k] != want {
						t.Fatalf("%d replicas: batch %d, token %d scores %v, want %v (%v)", n, i, k, scores[i][k], want, err)
					}
				}
			}
			first = policies[0].weights
		}
	}
}

// TestFailureStopsTheStep: a replica that fails before the update costs the step
// and nothing else; the others do not hang.
func TestFailureStopsTheStep(t *testing.T) {
	lost := errors.New("device lost")
	for name, set := range map[string]func(*bigram, error){
		"memory":   func(b *bigram, err error) { b.failGradient = err },
		"forward":  func(b *bigram, err error) { b.failAccumulate = err },
		"backward": func(b *bigram, err error) { b.failBackward = err },
	} {
		t.Run(name, func(t *testing.T) {
			g, policies := group(t, 4)
			if name == "backward" { // fails once a sum has begun
				g, policies, _ = slowGroup(t, 4)
			}
			g.Bucket = 10
			set(policies[2], lost)
			all := batches(1)
			err := g.Accumulate(t.Context(), all, objective(all))
			if errors.Is(err, replicas.ErrReducing) != (name == "backward") {
				t.Errorf("%v: ErrReducing is for the backward pass", err)
			}
			if !errors.Is(err, lost) || !strings.Contains(err.Error(), "replica 2: ") {
				t.Fatalf("%v, want %v of replica 2", err, lost)
			}
			before := newBigram(0, 1)
			for r, p := range policies {
				for i := range p.weights {
					if p.weights[i] != before.weights[i] || p.grad[i] != 0 {
						t.Fatalf("replica %d: weight %d is %v, was %v; gradient %v", r, i, p.weights[i], before.weights[i], p.grad[i])
					}
				}
			}
			// Mended, it trains as if nothing had been.
			set(policies[2], nil)
			if err := g.Accumulate(t.Context(), all, objective(all)); err != nil {
				t.Fatal(err)
			}
			if _, err := g.Step(t.Context(), opt); err != nil || g.Version() != 11 {
				t.Errorf("version %d, %v", g.Version(), err)
			}
		})
	}
}

func TestBrokenUpdateEndsTheGroup(t *testing.T) {
	g, policies := group(t, 3)
	policies[1].failUpdate = errors.New("device lost")
	all := batches(1)
	if err := g.Accumulate(t.Context(), all, objective(all)); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Step(t.Context(), opt); !errors.Is(err, policies[1].failUpdate) {
		t.Fatal(err)
	}
	if err := g.Accumulate(t.Context(), all, objective(all)); !errors.Is(err, policies[1].failUpdate) {
		t.Errorf("goes on after that: %v", err)
	}
}

// TestRefusesShards: a group whose shards leave something out, or overlap, is none.
func TestRefusesShards(t *testing.T) {
	for _, shards := range [][2]int{{0, 0}, {1, 0}, {1, 1}} {
		all := []replicas.Replica[[]float64]{newBigram(shards[0], 2), newBigram(shards[1], 2)}
		if _, err := replicas.New(all, collective.NewLocal(2, collective.Slices[float64]{})); err == nil || !strings.Contains(err.Error(), "shard") {
			t.Errorf("shards %v: %v", shards, err)
		}
	}
}

func TestNonFiniteGradientChangesNothing(t *testing.T) {
	g, policies := group(t, 2)
	all := batches(1)
	err := g.Accumulate(t.Context(), all, func(i int, logprobs, _ []float64) ([]float64, error) {
		out := make([]float64, len(logprobs))
		out[1] = math.Inf(1)
		return out, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Step(t.Context(), opt); !errors.Is(err, rl.ErrNonFinite) {
		t.Errorf("%v", err)
	}
	if w := newBigram(0, 1).weights; policies[0].weights[5] != w[5] || g.Version() != 10 {
		t.Error("the weights changed")
	}
}
