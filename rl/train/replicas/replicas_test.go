package replicas_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/kernels/collective"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
