package rl_test

import (
	"fmt"

	"gorgonia.org/gorgonia"

	"github.com/ssr-go/ssr/rl"
)

// A variant of one's own: the squared distance of the ratio from 1, with the sign
// of the advantage.
func ExampleRegister() {
	rl.Register("squared", rl.Family{
		About:    "an example",
		Defaults: rl.Settings{Aggregation: rl.TokenMean},
		Build: func(rl.Settings) (rl.Expression, error) {
			return rl.Expression{Build: func(in *rl.Inputs) *gorgonia.Node {
				gap := gorgonia.Must(gorgonia.Sub(in.Ratio(), in.Const(1)))
				return gorgonia.Must(gorgonia.HadamardProd(in.Advantage(), gorgonia.Must(gorgonia.Square(gap))))
			}}, nil
		},
	})
	s, err := rl.Defaults("squared")
	if err != nil {
		fmt.Println(err)
		return
	}
	s.KLCoef = 0.5 // penalties, corrections and aggregations come with it
	o, err := rl.New("squared", s)
	if err != nil {
		fmt.Println(err)
		return
	}
	mask, offsets := []bool{false, true, true}, []int{0, 3}
	r, err := o.Evaluate(rl.Batch{
		Logprobs: []float64{0, -1, -2}, RolloutLogprobs: []float64{0, -1, -1}, ReferenceLogprobs: []float64{0, -1, -2},
		Advantages: []float64{1, 1, 1}, Mask: mask, Offsets: offsets, Totals: rl.CountTotals(mask, offsets, nil),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	// (e⁻¹ − 1)²/2, and its derivative e⁻¹(e⁻¹ − 1).
	fmt.Printf("loss %.6f, gradient %.6f\n", r.Loss, r.Grad[1:])
	// Output: loss 0.199788, gradient [0.000000 -0.232544]
}
