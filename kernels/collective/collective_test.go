package collective

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// together runs f for every rank at once and returns their errors.
func together(n int, f func(rank int) error) []error {
	errs := make([]error, n)
	var wait sync.WaitGroup
	for rank := range n {
		wait.Go(func() { errs[rank] = f(rank) })
	}
	wait.Wait()
	return errs
}

func TestSumsDoNotDependOnTiming(t *testing.T) {
	const n, length = 4, 50
	rng := rand.New(rand.NewPCG(1, 1))
	var start [n][]float32
	for r := range start {
		for range length {
			start[r] = append(start[r], float32(rng.NormFloat64()))
		}
	}
	bounds := []int{3, 10, 10, 31, 47} // one part is empty, and both ends are nobody's
	g := NewLocal(n, Slices[float32]{})
	for range 20 {
		var vectors [n][]float32
		for r := range vectors {
			vectors[r] = slices.Clone(start[r])
		}
		errs := together(n, func(rank int) (err error) {
			v := vectors[rank]
			if err = g.ReduceScatter(t.Context(), rank, v, bounds); err != nil {
				return err
			}
			if rank != 2 { // what a rank does not own is as it was
				for i := bounds[2]; i < bounds[3]; i++ {
					if v[i] != start[rank][i] {
						t.Errorf("rank %d: [%d] = %v before the parts are gathered, was %v", rank, i, v[i], start[rank][i])
					}
				}
			}
			return g.AllGather(t.Context(), rank, v, bounds)
		})
		for rank, v := range vectors {
			if errs[rank] != nil {
				t.Fatalf("rank %d: %v", rank, errs[rank])
			}
			for i := range v {
				want := start[rank][i]
				if i >= bounds[0] && i < bounds[n] {
					want = ((start[0][i] + start[1][i]) + start[2][i]) + start[3][i]
				}
				if v[i] != want {
					t.Fatalf("rank %d: [%d] = %v, want %v", rank, i, v[i], want)
				}
			}
		}
	}
}

func TestAbsentRankFreesTheOthers(t *testing.T) {
	g := NewLocal(3, Slices[float64]{})
	ctx, cancel := context.WithCancel(t.Context())
	gone := errors.New("gone")
	errs := together(3, func(rank int) error {
		if rank == 1 {
			cancel()
			return gone
		}
		return g.ReduceScatter(ctx, rank, make([]float64, 3), []int{0, 1, 2, 3})
	})
	for rank, want := range []error{context.Canceled, gone, context.Canceled} {
		if !errors.Is(errs[rank], want) {
			t.Errorf("rank %d: %v, want %v", rank, errs[rank], want)
		}
	}
	// The group works again.
	for _, err := range together(3, func(rank int) error {
		v := []float64{2, 2, 2}
		err := g.ReduceScatter(t.Context(), rank, v, []int{0, 1, 2, 3})
		if v[rank] != 6 {
			t.Errorf("rank %d: %v", rank, v)
		}
		return err
	}) {
		if err != nil {
			t.Error(err)
		}
	}
}
