package train

import (
	"math"
	"testing"
)

func TestSchedule(t *testing.T) {
	for _, c := range []struct {
		s    Schedule
		want []float64 // after 0, 1, 2, … updates
	}{
		{Schedule{Kind: ConstantLR, Warmup: 4}, []float64{0.25, 0.5, 0.75, 1, 1, 1}},
		{Schedule{Kind: LinearLR, Warmup: 2, Total: 6, Floor: 0.2}, []float64{0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2}},
		{Schedule{Kind: CosineLR, Total: 4}, []float64{1, (1 + math.Sqrt2/2) / 2, 0.5, (1 - math.Sqrt2/2) / 2, 0, 0}},
	} {
		for n, want := range c.want {
			if got := c.s.Factor(n); math.Abs(got-want) > 1e-12 {
				t.Errorf("%+v after %d updates: %g, want %g", c.s, n, got, want)
			}
		}
	}
}
