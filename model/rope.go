package model

import "math"

// rotary is the table of cosines and sines [positions, HeadDim/2] that
// native.Rope takes.
type rotary[F float] struct{ cos, sin []F }

// newRotary computes the angles in float32, as the reference implementation
// does: at position 10,000 the rounding of an angle shows in a logprob.
func newRotary[F float](c Config) rotary[F] {
	freqs := inverseFrequencies(c)
	half := len(freqs)
	r := rotary[F]{cos: make([]F, c.MaxPositions*half), sin: make([]F, c.MaxPositions*half)}
	for pos := range c.MaxPositions {
		for i, f := range freqs {
			angle := float64(float32(pos) * f)
			r.cos[pos*half+i] = F(math.Cos(angle))
			r.sin[pos*half+i] = F(math.Sin(angle))
		}
	}
	return r
}

func inverseFrequencies(c Config) []float32 {
	freqs := make([]float32, c.HeadDim/2)
	for i := range freqs {
		freqs[i] = 1 / float32(math.Pow(c.RopeTheta, float64(float32(2*i)/float32(c.HeadDim))))
	}
	if c.RopeScaling != nil {
		c.RopeScaling.apply(freqs)
	}
	return freqs
}

// apply slows the frequencies whose wavelength exceeds the original context,
// keeps those well within it, and blends in between.
func (s RopeScaling) apply(freqs []float32) {
	context := float64(s.OriginalMaxPosns)
	for i, f := range freqs {
		wavelength := 2 * math.Pi / float64(f)
		switch {
		case wavelength < context/s.HighFreqFactor:
		case wavelength > context/s.LowFreqFactor:
			freqs[i] = float32(float64(f) / s.Factor)
		default:
			smooth := (context/wavelength - s.LowFreqFactor) / (s.HighFreqFactor - s.LowFreqFactor)
			freqs[i] = float32((1-smooth)*float64(f)/s.Factor + smooth*float64(f))
		}
	}
}
