package replicas_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ssr-go/ssr/kernels/collective"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

// patient is a replica that tells nobody what of its gradient is final before it is
// all: sums cannot overlap.
type patient struct{ *bigram }

func (p patient) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, _ func(int)) error {
	return p.bigram.Accumulate(ctx, batches, fn, func(int) {})
}

// TestBuckets: whatever the buckets, and whether sums overlap the backward pass or not,
// training is the same bit for bit.
func TestBuckets(t *testing.T) {
	for _, stage := range stages {
		testBuckets(t, stage)
	}
}

func testBuckets(t *testing.T, stage func(i, n int) *bigram) {
	for _, n := range []int{1, 2, 4} {
		var want []float64
		for _, bucket := range []int{1000, 81, 80, 10, 1, -10} {
			var all []replicas.Replica[[]float64]
			var policies []*bigram
			for i := range n {
				policies = append(policies, stage(i, n))
				if bucket < 0 && policies[i].sharded == nil {
					all = append(all, patient{policies[i]})
				} else {
					all = append(all, policies[i])
				}
			}
			g, err := replicas.New(all, collective.NewLocal(n, collective.Slices[float64]{}))
			if err != nil {
				t.Fatal(err)
			}
			g.Bucket = max(bucket, -bucket)
			for step := range uint64(5) {
				all := batches(step)
				if err := g.Accumulate(t.Context(), all, objective(all)); err != nil {
					t.Fatal(err)
				}
				if _, err := g.Step(t.Context(), opt); err != nil {
					t.Fatal(err)
				}
			}
			if want == nil {
				want = policies[0].weights
			}
			for r, p := range policies {
				if !slices.Equal(p.weights, want) {
					t.Errorf("%d replicas in buckets of %d: the weights of number %d differ", n, bucket, r)
				}
			}
		}
	}
}

// diary notes what happens in which order.
type diary struct {
	mu     sync.Mutex
	events []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, fmt.Sprintf(format, args...))
}

// slow is a reducer whose first sum begins, but does not end before the backward passes of
// all ranks have.
type slow struct {
	replicas.Reducer[[]float64]
	diary    *diary
	began    chan struct{} // closed with the first sum
	once     sync.Once
	backward sync.WaitGroup
}

func (s *slow) ReduceScatter(ctx context.Context, rank int, vector []float64, bounds []int) error {
	s.diary.note("rank %d sums %d", rank, bounds[len(bounds)-1])
	s.once.Do(func() { close(s.began) })
	s.backward.Wait()
	return s.Reducer.ReduceScatter(ctx, rank, vector, bounds)
}

// watched is a replica whose backward pass, with a part of the gradient final, does not go
// on before a sum has begun.
type watched struct {
	*bigram
	slow *slow
	rank int
}

func (w watched) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(int)) error {
	w.slow.backward.Add(1)
	defer w.slow.backward.Done()
	var late error
	err := w.bigram.Accumulate(ctx, batches, fn, func(from int) {
		final(from)
		if from == 5*vocab {
			select {
			case <-w.slow.began:
			case <-time.After(time.Minute):
				late = errors.New("no sum has begun in the middle of the backward pass")
			}
		}
		if from == 0 {
			w.slow.diary.note("rank %d ends its backward pass", w.rank)
		}
	})
	return errors.Join(err, late)
}

func (w watched) Reduce(ctx context.Context, lo, hi int, sum func([]float64) error) error {
	w.slow.diary.note("rank %d reduces [%d, %d)", w.rank, lo, hi)
	return w.bigram.Reduce(ctx, lo, hi, sum)
}

func slowGroup(t *testing.T, n int) (*replicas.Group[[]float64], []*bigram, *slow) {
	t.Helper()
	s := &slow{Reducer: collective.NewLocal(n, collective.Slices[float64]{}), diary: &diary{}, began: make(chan struct{})}
	var all []replicas.Replica[[]float64]
	var policies []*bigram
	for i := range n {
		policies = append(policies, newBigram(i, n))
		all = append(all, watched{policies[i], s, i})
	}
	g, err := replicas.New(all, s)
	if err != nil {
		t.Fatal(err)
	}
	return g, policies, s
}

// TestSumsOverlapBackward: a bucket is summed as soon as its last gradient is written on
// all ranks. The order of events shows it: sums begin before any backward pass has ended,
// in the order of buckets from the end, and a slow one does not keep the passes waiting.
func TestSumsOverlapBackward(t *testing.T) {
	const n = 3
	g, _, s := slowGroup(t, n)
	g.Bucket = 30
	packed := batches(1)
	if err := g.Accumulate(t.Context(), packed, objective(packed)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%q", s.diary.events)
	for rank := range n {
		ends := slices.Index(s.diary.events, fmt.Sprintf("rank %d ends its backward pass", rank))
		begins := slices.IndexFunc(s.diary.events, func(e string) bool { return strings.Contains(e, "sums") })
		var sums []string
		for _, e := range s.diary.events {
			if strings.HasPrefix(e, fmt.Sprintf("rank %d reduces", rank)) {
				sums = append(sums, e[len("rank 0 reduces "):])
			}
		}
		if want := []string{"[51, 81)", "[21, 51)", "[0, 21)"}; !slices.Equal(sums, want) {
			t.Errorf("rank %d sums %v, want %v", rank, sums, want)
		}
		if ends < 0 || begins > ends {
			t.Errorf("rank %d ended its backward pass before any sum began", rank)
		}
	}
}

// TestOneAccumulateForAStep: sums cannot be taken back.
func TestOneAccumulateForAStep(t *testing.T) {
	g, _ := group(t, 2, newBigram, nil)
	all := batches(1)
	if err := g.Accumulate(t.Context(), all, objective(all)); err != nil {
		t.Fatal(err)
	}
	if err := g.Accumulate(t.Context(), all, objective(all)); err == nil {
		t.Error("gradients were added to sums")
	}
	if _, err := g.Step(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Step(t.Context(), opt); err != nil || g.Version() != 12 {
		t.Errorf("a step without a gradient: version %d, %v", g.Version(), err)
	}
}

// TestRefusedUpdateReducesNothing: where the objective refuses one batch of one replica no
// sum begins on any, so that the members of a Reducer stay together.
func TestRefusedUpdateReducesNothing(t *testing.T) {
	const n = 3
	d := &diary{}
	s := &slow{Reducer: collective.NewLocal(n, collective.Slices[float64]{}), diary: d, began: make(chan struct{})}
	g, _ := group(t, n, newBigram, s)
	packed := batches(1)
	accept := objective(packed)
	err := g.Accumulate(t.Context(), packed, func(i int, logprobs, entropies []float64) ([]float64, error) {
		if i == 4 {
			return nil, rl.ErrNonFinite
		}
		return accept(i, logprobs, entropies)
	})
	if !errors.Is(err, rl.ErrNonFinite) || errors.Is(err, replicas.ErrReducing) || len(d.events) > 0 {
		t.Errorf("%v, then %q", err, d.events)
	}
}

// ahead is a replica whose backward passes wait, before their last piece is final, until
// a later update is refused.
type ahead struct {
	*bigram
	refused <-chan struct{}
}

func (a ahead) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(int)) error {
	return a.bigram.Accumulate(ctx, batches, fn, func(from int) {
		if from == 0 {
			<-a.refused
		}
		final(from)
	})
}

// refusing is a replica whose second update in a step is refused.
type refusing struct {
	*bigram
	refused chan<- struct{}
}

func (r refusing) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(int)) error {
	return r.bigram.Accumulate(ctx, batches, func(i int, logprobs, entropies []float64) ([]float64, error) {
		if r.calls == 2 {
			close(r.refused)
			return nil, rl.ErrNonFinite
		}
		return fn(i, logprobs, entropies)
	}, final)
}

// TestRefusedRound: where gradients are sharded and the objective refuses a second
// micro-batch while other replicas are still at their first, all sums of the first are
// completed on all, none of the second begins, and the update may be skipped.
func TestRefusedRound(t *testing.T) {
	const n = 3
	sums := &whole{Reducer: collective.NewLocal(n, collective.Slices[float64]{})}
	refused := make(chan struct{})
	var all []replicas.Replica[[]float64]
	for i := range n - 1 {
		all = append(all, ahead{newSharded(i, n), refused})
	}
	all = append(all, refusing{newSharded(n-1, n), refused}) // which has three micro-batches
	g, err := replicas.New(all, sums)
	if err != nil {
		t.Fatal(err)
	}
	packed := batches(1)
	err = g.Accumulate(t.Context(), packed, objective(packed))
	if !errors.Is(err, rl.ErrNonFinite) || errors.Is(err, replicas.ErrReducing) {
		t.Error(err)
	}
	sums.check(t)
	if got := sums.completed[0].Load(); got != int64(len(begins)) {
		t.Errorf("%d sums, want the %d of one round", got, len(begins))
	}
	// Skipped, it changes nothing.
	if _, err := g.Step(t.Context(), opt); err != nil || g.Version() != 11 {
		t.Errorf("a step without a gradient: version %d, %v", g.Version(), err)
	}
}

// eager is a replica whose backward pass, with two of four pieces final, does not go
// on before a sum has begun.
type eager struct {
	*bigram
	began <-chan struct{}
}

func (e eager) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(int)) error {
	return e.bigram.Accumulate(ctx, batches, fn, func(from int) {
		final(from)
		if from == begins[2] {
			<-e.began
		}
	})
}

// beginning is a reducer that tells when its first sum begins.
type beginning struct {
	replicas.Reducer[[]float64]
	began chan struct{}
	once  sync.Once
}

func (b *beginning) ReduceScatter(ctx context.Context, rank int, vector []float64, bounds []int) error {
	b.once.Do(func() { close(b.began) })
	return b.Reducer.ReduceScatter(ctx, rank, vector, bounds)
}

// TestShardedSumsOverlapBackward: a piece of a sharded gradient is summed while the
// backward pass goes on, which here waits for that in its middle.
func TestShardedSumsOverlapBackward(t *testing.T) {
	const n = 3
	b := &beginning{Reducer: collective.NewLocal(n, collective.Slices[float64]{}), began: make(chan struct{})}
	var all []replicas.Replica[[]float64]
	for i := range n {
		all = append(all, eager{newSharded(i, n), b.began})
	}
	g, err := replicas.New(all, b)
	if err != nil {
		t.Fatal(err)
	}
	packed := batches(1)
	if err := g.Accumulate(t.Context(), packed, objective(packed)); err != nil {
		t.Fatal(err)
	}
}
