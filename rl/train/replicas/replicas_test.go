package replicas_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
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

// TestSameTraining: any number of replicas trains as one loop over everything does,
// within rounding; on equal numbers bit for bit. Seven micro-batches are not equally many
// for each of two or more; of nine replicas none has two, and it makes no difference when
// gradients are summed.
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
		first := map[string][]float64{}
		for _, stage := range slices.Repeat(slices.Collect(maps.Keys(stages)), 2) {
			g, policies := group(t, n, stages[stage], nil)
			g.Bucket = 10
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
					if w != policies[0].weights[i] || first[stage] != nil && w != first[stage][i] {
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
			first[stage] = policies[0].weights
		}
		if n == 9 && !slices.Equal(first["whole gradients"], first["sharded gradients"]) {
			t.Error("with a micro-batch for each replica it matters when gradients are summed")
		}
	}
}

// TestFailureStopsTheStep: a replica that fails before the update costs the step
// and nothing else; the others do not hang. Where it fails before the sums of a round, those
// of earlier ones have been completed.
func TestFailureStopsTheStep(t *testing.T) {
	lost := errors.New("device lost")
	for name, set := range map[string]func(*bigram, error){
		"memory":   func(b *bigram, err error) { b.failPrepare = err },
		"forward":  func(b *bigram, err error) { b.failAccumulate = err },
		"backward": func(b *bigram, err error) { b.failBackward = err },
	} {
		for stage, make := range stages {
			for call := range 2 {
				if call > 0 && stage == "whole gradients" {
					continue // there is one
				}
				t.Run(fmt.Sprint(name, ", ", stage, ", call ", call), func(t *testing.T) {
					whole := &whole{Reducer: collective.NewLocal(3, collective.Slices[float64]{})}
					g, policies := group(t, 3, make, whole)
					if name == "backward" && stage == "whole gradients" { // fails once a sum has begun
						g, policies, _ = slowGroup(t, 3)
					}
					g.Bucket = 10
					set(policies[2], lost)
					policies[2].failCall = call
					all := batches(1)
					err := g.Accumulate(t.Context(), all, objective(all))
					if errors.Is(err, replicas.ErrReducing) != (name == "backward") {
						t.Errorf("%v: ErrReducing is for the backward pass", err)
					}
					if !errors.Is(err, lost) || !strings.Contains(err.Error(), "replica 2: ") {
						t.Fatalf("%v, want %v of replica 2", err, lost)
					}
					if name != "backward" {
						whole.check(t)
					}
					before := newBigram(0, 1)
					for r, p := range policies {
						if !slices.Equal(p.weights, before.weights) || slices.ContainsFunc(p.grad, func(g float64) bool { return g != 0 }) {
							t.Fatalf("replica %d: weights %v, were %v; gradient %v", r, p.weights, before.weights, p.grad)
						}
					}
					// Mended, it trains as if nothing had been.
					set(policies[2], nil)
					calm, others := group(t, 3, make, nil)
					for _, g := range []*replicas.Group[[]float64]{g, calm} {
						if err := g.Accumulate(t.Context(), all, objective(all)); err != nil {
							t.Fatal(err)
						}
						if _, err := g.Step(t.Context(), opt); err != nil || g.Version() != 11 {
							t.Errorf("version %d, %v", g.Version(), err)
						}
					}
					if !slices.Equal(policies[0].weights, others[0].weights) {
						t.Error("it trains on otherwise than a group that did not fail")
					}
				})
			}
		}
	}
}

// whole counts the sums that are begun, and those that are completed, by rank.
type whole struct {
	replicas.Reducer[[]float64]
	begun, completed [9]atomic.Int64
}

func (w *whole) ReduceScatter(ctx context.Context, rank int, vector []float64, bounds []int) error {
	w.begun[rank].Add(1)
	err := w.Reducer.ReduceScatter(ctx, rank, vector, bounds)
	if err == nil {
		w.completed[rank].Add(1)
	}
	return err
}

// check finds no rank in the middle of a sum, nor one that others have not come to.
func (w *whole) check(t *testing.T) {
	t.Helper()
	for r := range w.begun {
		if b, c := w.begun[r].Load(), w.completed[r].Load(); b != c || b != 0 && b != w.begun[0].Load() {
			t.Errorf("rank %d has begun %d sums and completed %d; rank 0 has begun %d", r, b, c, w.begun[0].Load())
		}
	}
}

func TestBrokenUpdateEndsTheGroup(t *testing.T) {
	g, policies := group(t, 3, newBigram, nil)
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

// TestRefusesStages: replicas that keep different parts of the gradient are no group.
func TestRefusesStages(t *testing.T) {
	all := []replicas.Replica[[]float64]{newBigram(0, 2), newSharded(1, 2)}
	if _, err := replicas.New(all, collective.NewLocal(2, collective.Slices[float64]{})); err == nil || !strings.Contains(err.Error(), "number 1 keeps") {
		t.Error(err)
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
	g, policies := group(t, 2, newBigram, nil)
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
