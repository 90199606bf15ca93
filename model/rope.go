package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
)

// Kinds of rotary frequencies.
const (
	defaultRope = "default"
	linearRope  = "linear"
	llama3Rope  = "llama3"
	yarnRope    = "yarn"
)

// RopeScaling changes the rotary frequencies of a model whose context is longer
// than the one it was first trained with. A field that is absent has the value
// that transformers assumes of it.
type RopeScaling struct {
	// Type is "linear", "llama3" or "yarn".
	Type string `json:"rope_type"`
	// Factor is how many times longer.
	Factor float64 `json:"factor,omitempty"`
	// OriginalMaxPosns is the first context, in tokens, of llama3 and yarn.
	OriginalMaxPosns int `json:"original_max_position_embeddings,omitempty"`
	// Of llama3: wavelengths above OriginalMaxPosns/LowFreqFactor are scaled,
	// those below OriginalMaxPosns/HighFreqFactor are not.
	LowFreqFactor  float64 `json:"low_freq_factor,omitempty"`
	HighFreqFactor float64 `json:"high_freq_factor,omitempty"`
	// Of yarn: frequencies that turn more than BetaFast times in the first
	// context are kept, those that turn less than BetaSlow times are scaled.
	BetaFast float64 `json:"beta_fast,omitempty"`
	BetaSlow float64 `json:"beta_slow,omitempty"`
	// Truncate rounds the range between them to whole frequencies.
	Truncate *bool `json:"truncate,omitempty"`
	// AttentionFactor multiplies the rotated queries and keys; when absent it
	// follows from Factor, MScale and MScaleAllDim.
	AttentionFactor *float64 `json:"attention_factor,omitempty"`
	MScale          float64  `json:"mscale,omitempty"`
	MScaleAllDim    float64  `json:"mscale_all_dim,omitempty"`
}

// rope is what config.json says of rotary embeddings, as rope_scaling or, as
// transformers 5 writes it, as rope_parameters.
type rope struct {
	OldType string   `json:"type"`
	Theta   *float64 `json:"rope_theta"`
	Partial *float64 `json:"partial_rotary_factor"`
	RopeScaling
}

// setRope reads the rotary parameters, of several spellings the one that
// transformers prefers.
func (c *Config) setRope(f file) error {
	set(&c.RopeTheta, f.RopeTheta)
	partial := f.Partial
	for _, raw := range [][]byte{f.RopeScaling, f.RopeParams, []byte(c.family().rope)} {
		if s := string(bytes.TrimSpace(raw)); s == "" || s == "null" || s == "{}" {
			continue
		}
		var r rope
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields() // what is not known here may change the frequencies
		if err := d.Decode(&r); err != nil {
			return fmt.Errorf("rotary parameters: %w", err)
		}
		set(&c.RopeTheta, r.Theta)
		if r.Partial != nil {
			partial = r.Partial
		}
		if r.Type == "" {
			r.Type = r.OldType
		}
		if r.Type != "" && r.Type != defaultRope {
			if r.OriginalMaxPosns == 0 && r.Type != linearRope {
				r.OriginalMaxPosns = c.MaxPositions
			}
			c.RopeScaling = &r.RopeScaling
		}
		break
	}
	if partial != nil && *partial != 1 {
		return fmt.Errorf("partial_rotary_factor %v is not supported; want 1", *partial)
	}
	return nil
}

func (s RopeScaling) validate() error {
	switch {
	case s.Type != linearRope && s.Type != llama3Rope && s.Type != yarnRope:
		return fmt.Errorf("rope scaling %q is not supported; known: %s, %s, %s", s.Type, linearRope, llama3Rope, yarnRope)
	case !(s.Factor > 0):
		return fmt.Errorf("rope scaling %q: factor is %v or missing; want a positive number", s.Type, s.Factor)
	case s.Type != linearRope && s.OriginalMaxPosns <= 0:
		return fmt.Errorf("rope scaling %q: original_max_position_embeddings is %d; want a positive number", s.Type, s.OriginalMaxPosns)
	case s.Type == llama3Rope && (!(s.LowFreqFactor > 0) || !(s.HighFreqFactor > s.LowFreqFactor)):
		return fmt.Errorf("rope scaling %q: low_freq_factor %v, high_freq_factor %v; want two positive numbers, the low one lower",
			s.Type, s.LowFreqFactor, s.HighFreqFactor)
	case s.BetaFast < 0 || s.BetaSlow < 0 || s.AttentionFactor != nil && !(*s.AttentionFactor > 0):
		return fmt.Errorf("rope scaling %q: beta_fast, beta_slow and attention_factor must be positive", s.Type)
	}
	return nil
}

// rotary is the table of cosines and sines [positions, HeadDim/2] that
// native.Rope takes.
type rotary[F float] struct{ cos, sin []F }

// newRotary computes the angles in float32, as the reference implementation
// does: at position 10,000 the rounding of an angle shows in a logprob.
func newRotary[F float](c Config) rotary[F] {
	freqs, scale := frequencies(c)
	half := len(freqs)
	r := rotary[F]{cos: make([]F, c.MaxPositions*half), sin: make([]F, c.MaxPositions*half)}
	for pos := range c.MaxPositions {
		for i, f := range freqs {
			angle := float64(float32(pos) * f)
			r.cos[pos*half+i] = F(math.Cos(angle) * scale)
			r.sin[pos*half+i] = F(math.Sin(angle) * scale)
		}
	}
	return r
}

// frequencies gives the radians that each pair of a head turns per position, and
// what multiplies the rotated pairs.
func frequencies(c Config) (freqs []float32, scale float64) {
	freqs = make([]float32, c.HeadDim/2)
	for i := range freqs {
		freqs[i] = 1 / ropePower(c, i)
	}
	s := c.RopeScaling
	if s == nil {
		return freqs, 1
	}
	switch s.Type {
	case linearRope:
		for i := range freqs {
			freqs[i] /= float32(s.Factor)
		}
	case llama3Rope:
		s.applyLlama3(freqs)
	case yarnRope:
		applyYarn(freqs, c)
		return freqs, s.attentionFactor()
	}
	return freqs, 1
}

// ropePower is how many positions pair i of a head takes to turn by one radian.
func ropePower(c Config, i int) float32 {
	return float32(math.Pow(c.RopeTheta, float64(float32(2*i)/float32(c.HeadDim))))
}

// applyLlama3 slows the frequencies whose wavelength exceeds the original
// context, keeps those well within it, and blends in between.
func (s RopeScaling) applyLlama3(freqs []float32) {
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

// applyYarn slows the frequencies that turn seldom in the original context and
// blends, by their index, towards those that turn often (YaRN, arXiv 2309.00071,
// section 3.2).
func applyYarn(freqs []float32, c Config) {
	s, dim := c.RopeScaling, float64(c.HeadDim)
	// index of the frequency that turns so many times in the original context.
	index := func(turns float64) float64 {
		return dim * math.Log(float64(s.OriginalMaxPosns)/(turns*2*math.Pi)) / (2 * math.Log(c.RopeTheta))
	}
	low, high := index(orElse(s.BetaFast, 32)), index(orElse(s.BetaSlow, 1))
	if s.Truncate == nil || *s.Truncate {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, dim-1)
	if low == high {
		high += 0.001
	}
	for i, f := range freqs {
		ramp := min(max((float32(i)-float32(low))/float32(high-low), 0), 1)
		freqs[i] = 1/(float32(s.Factor)*ropePower(c, i))*ramp + f*(1-ramp)
	}
}

// attentionFactor is yarn's (section 3.3), in the form of several scales that
// some checkpoints use.
func (s RopeScaling) attentionFactor() float64 {
	scale := func(m float64) float64 {
		if s.Factor <= 1 {
			return 1
		}
		return 0.1*m*math.Log(s.Factor) + 1
	}
	switch {
	case s.AttentionFactor != nil:
		return *s.AttentionFactor
	case s.MScale != 0 && s.MScaleAllDim != 0:
		return scale(s.MScale) / scale(s.MScaleAllDim)
	}
	return scale(1)
}

func orElse(v, d float64) float64 {
	if v == 0 {
		return d
	}
	return v
}
