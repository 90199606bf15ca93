package native

// #include "api.h"
import "C"

import (
	"fmt"
	"math"
)

// AdamW holds the constants of one optimizer step.
type AdamW struct {
	LR, Beta1, Beta2, Eps float64
	// WeightDecay is decoupled: parameters shrink by LR·WeightDecay first.
	WeightDecay float64
	// GradScale multiplies every gradient before use (clipping); 0 means 1.
	GradScale float64
	// Step counts from 1, for the bias corrections.
	Step int
}

// Update applies the step to parameters p with gradients g and moments m and v,
// in place. All have the same length.
func Update[F Float](o AdamW, p, g, m, v []F) {
	n := len(p)
	if len(g) != n || len(m) != n || len(v) != n || o.Step < 1 {
		panic(fmt.Sprintf("native.Update: step %d over %d parameters, %d gradients, %d and %d moments", o.Step, n, len(g), len(m), len(v)))
	}
	if n == 0 {
		return
	}
	scale := o.GradScale
	if scale == 0 {
		scale = 1
	}
	c1 := 1 - math.Pow(o.Beta1, float64(o.Step))
	c2 := 1 - math.Pow(o.Beta2, float64(o.Step))
	args := [...]C.double{
		C.double(scale), C.double(o.LR), C.double(o.Beta1), C.double(o.Beta2), C.double(o.Eps),
		C.double(o.WeightDecay), C.double(c1), C.double(c2),
	}
	if single[F]() {
		C.ssr_adamw_float(f32(p), f32(g), f32(m), f32(v), C.long(n), args[0], args[1], args[2], args[3], args[4], args[5], args[6], args[7])
	} else {
		C.ssr_adamw_double(f64(p), f64(g), f64(m), f64(v), C.long(n), args[0], args[1], args[2], args[3], args[4], args[5], args[6], args[7])
	}
}

// SumSquares adds x² in double precision, in a fixed order.
func SumSquares[F Float](x []F) float64 {
	if len(x) == 0 {
		return 0
	}
	if single[F]() {
		return float64(C.ssr_sum_squares_float(f32(x), C.long(len(x))))
	}
	return float64(C.ssr_sum_squares_double(f64(x), C.long(len(x))))
}
