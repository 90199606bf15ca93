package train

import (
	"fmt"
	"math"
)

// ScheduleKind is the shape of the learning rate after its warm-up.
type ScheduleKind string

const (
	ConstantLR ScheduleKind = "constant"
	LinearLR   ScheduleKind = "linear"
	CosineLR   ScheduleKind = "cosine"
)

// Schedule scales the learning rate by the number of updates done.
type Schedule struct {
	Kind ScheduleKind `json:"kind" yaml:"kind"`
	// Warmup is the number of updates in which the rate rises linearly to its peak.
	Warmup int `json:"warmup" yaml:"warmup"`
	// Total is the number of updates, warm-up included, at whose end a falling
	// rate has reached Floor times the peak. Unused when constant.
	Total int     `json:"total,omitempty" yaml:"total,omitempty"`
	Floor float64 `json:"floor,omitempty" yaml:"floor,omitempty"`
}

// Factor is what the peak is multiplied by for the next update, after updates of them.
func (s Schedule) Factor(updates int) float64 {
	if updates < s.Warmup {
		return float64(updates+1) / float64(s.Warmup)
	}
	if s.Kind == ConstantLR {
		return 1
	}
	left := 1.0 // of the way from the end of the warm-up to Total
	if span := s.Total - s.Warmup; span > 0 {
		left = 1 - min(1, float64(updates-s.Warmup)/float64(span))
	}
	if s.Kind == CosineLR {
		left = (1 - math.Cos(math.Pi*left)) / 2
	}
	return s.Floor + (1-s.Floor)*left
}

func (s Schedule) check() error {
	switch {
	case s.Kind != ConstantLR && s.Kind != LinearLR && s.Kind != CosineLR:
		return fmt.Errorf("schedule: no kind %q; there are constant, linear, cosine", s.Kind)
	case s.Warmup < 0 || !(s.Floor >= 0 && s.Floor <= 1):
		return fmt.Errorf("schedule: warmup %d must not be negative and floor %g must lie in [0, 1]", s.Warmup, s.Floor)
	case s.Kind != ConstantLR && s.Total <= s.Warmup:
		return fmt.Errorf("schedule: a %s schedule needs a total (%d) above its warmup (%d)", s.Kind, s.Total, s.Warmup)
	}
	return nil
}
