package replicas_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ssr-go/ssr/kernels/collective"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

const vocab = 9

// bigram is a policy in a few lines: the logits of a token are a row of weights,
// chosen by the token before it.
type bigram struct {
	weights, grad, mean, square []float64 // grad is the whole or that of the shard
	lo, hi                      int
	version                     int64
	// sharded has the memory beside the gradient of the shard; nil: it is whole.
	sharded *pieces
	// failAccumulate, failBackward, failPrepare and failUpdate are returned where not nil,
	// the first two in call number failCall of Accumulate in a step.
	failAccumulate, failBackward, failPrepare, failUpdate error
	failCall, calls                                       int
}

// pieces of a gradient of which two are in memory at a time.
type pieces struct {
	free, held chan []float64 // held in the order in which they are computed
	now        []float64      // is being reduced; nil is zeros
}

// begins are where pieces begin: with rows 0, 2, 5 and 7.
var begins = []int{0, 2 * vocab, 5 * vocab, 7 * vocab}

const longest = 3 * vocab

// newSharded is newBigram that keeps its shard of the gradient.
func newSharded(i, n int) *bigram {
	b := newBigram(i, n)
	b.grad = make([]float64, b.hi-b.lo)
	b.sharded = &pieces{free: make(chan []float64, 2), held: make(chan []float64, 2)}
	for range 2 {
		b.sharded.free <- make([]float64, longest)
	}
	return b
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

func (b *bigram) Version() int64      { return b.version }
func (b *bigram) Len() int            { return len(b.weights) }
func (b *bigram) Shard() (lo, hi int) { return b.lo, b.hi }
func (b *bigram) Prepare() error      { b.calls = 0; return b.failPrepare }

func (b *bigram) Pieces() []int {
	if b.sharded == nil {
		return nil
	}
	return begins
}

// shard is the gradient of the shard.
func (b *bigram) shard() []float64 {
	if b.sharded == nil {
		return b.grad[b.lo:b.hi]
	}
	return b.grad
}

func (b *bigram) Reduce(_ context.Context, lo, hi int, sum func([]float64) error) error {
	if b.sharded == nil {
		return sum(b.grad[lo:hi])
	}
	s, piece := b.sharded, 0
	for piece+1 < len(begins) && begins[piece+1] <= lo {
		piece++
	}
	if hi == append(begins, len(b.weights))[piece+1] { // its last elements come first
		select {
		case s.now = <-s.held:
		default:
		}
	}
	part := make([]float64, hi-lo)
	if s.now != nil {
		part = s.now[lo-begins[piece] : hi-begins[piece]]
	}
	if err := sum(part); err != nil {
		return err
	}
	for i := max(lo, b.lo); i < min(hi, b.hi); i++ {
		b.grad[i-b.lo] += part[i-lo]
	}
	if lo == begins[piece] && s.now != nil {
		clear(s.now)
		s.free <- s.now
		s.now = nil
	}
	return nil
}

func (b *bigram) Clear() {
	clear(b.grad)
	if s := b.sharded; s != nil {
		for s.now != nil || len(s.held) > 0 {
			if s.now == nil {
				s.now = <-s.held
			}
			clear(s.now)
			s.free <- s.now
			s.now = nil
		}
	}
}

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
	fails := b.calls == b.failCall
	b.calls++
	var piece []float64
	for i, batch := range batches {
		if fails && b.failAccumulate != nil {
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
			at, p := int(prev)*vocab, b.softmax(prev)
			if b.sharded == nil {
				piece = b.grad
			} else {
				k, begin := slices.BinarySearch(begins, at)
				if !begin {
					k--
				}
				at -= begins[k]
				if piece == nil {
					select {
					case piece = <-b.sharded.free:
						b.sharded.held <- piece
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			}
			row := piece[at:][:vocab]
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
				if fails && b.failBackward != nil && prev == vocab/2 {
					return b.failBackward
				}
				if at == 0 {
					piece = nil
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
	for _, g := range b.shard() {
		sum += g * g
	}
	return sum, nil
}

func (b *bigram) Update(o train.AdamW, scale float64, share func([]float64) error) error {
	if b.failUpdate != nil {
		return b.failUpdate
	}
	b.version++
	adamw(o, b.version-10, scale, b.weights[b.lo:b.hi], b.shard(), b.mean, b.square)
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

// stages of ZeRO are ways to make a bigram.
var stages = map[string]func(i, n int) *bigram{"whole gradients": newBigram, "sharded gradients": newSharded}

// group is one of n, whose gradients are summed by a reducer; nil is a Local.
func group(t *testing.T, n int, stage func(i, n int) *bigram, reducer replicas.Reducer[[]float64]) (*replicas.Group[[]float64], []*bigram) {
	t.Helper()
	var all []replicas.Replica[[]float64]
	var policies []*bigram
	for i := range n {
		b := stage(i, n)
		all, policies = append(all, b), append(policies, b)
	}
	if reducer == nil {
		reducer = collective.NewLocal(n, collective.Slices[float64]{})
	}
	g, err := replicas.New(all, reducer)
	if err != nil {
		t.Fatal(err)
	}
	return g, policies
}
