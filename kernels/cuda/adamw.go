package cuda

import (
	"encoding/binary"
	"math"
)

// AdamW are the constants of one step; Step counts from 1. Gradients are multiplied by
// GradScale first.
type AdamW struct {
	LR, Beta1, Beta2, Eps, WeightDecay, GradScale float64
	Step                                          int
}

// Param is one tensor that is trained: of N elements each in float32 the weights as
// they are updated, both moments, and the gradient; and, unless Weight is 0, the
// weights in bfloat16, which follow.
type Param struct {
	Weight, Master, Mean, Square, Grad Pointer
	N                                  int
	// Decay multiplies AdamW.WeightDecay, which is decoupled, for this tensor.
	Decay float64
}

// Optimizer updates a fixed set of tensors in one launch, however many.
type Optimizer struct {
	tensors, shares, part, sum Pointer
	blocks                     int
}

const (
	shareElements = 4096 // CHUNK of adamw.cu
	paramSize     = 56
)

// NewOptimizer uploads the table of params. Free gives its memory back.
func NewOptimizer(m Machine, params []Param) (o *Optimizer, err error) {
	var tensors, shares []byte
	for i, p := range params {
		for _, v := range []uint64{
			uint64(p.Weight), uint64(p.Master), uint64(p.Mean), uint64(p.Square), uint64(p.Grad), uint64(p.N),
			uint64(math.Float32bits(float32(p.Decay))),
		} {
			tensors = binary.LittleEndian.AppendUint64(tensors, v)
		}
		for at := 0; at < p.N; at += shareElements {
			shares = binary.LittleEndian.AppendUint64(shares, uint64(at))
			shares = binary.LittleEndian.AppendUint64(shares, uint64(uint32(i)))
		}
	}
	check("NewOptimizer", len(shares) > 0, "%d tensors without an element", len(params))
	o = &Optimizer{blocks: len(shares) / 16}
	for _, a := range []struct {
		to    *Pointer
		bytes int
	}{{&o.tensors, len(tensors)}, {&o.shares, len(shares)}, {&o.part, 8 * o.blocks}, {&o.sum, 8}} {
		if *a.to, err = m.Alloc(a.bytes); err != nil {
			o.Free(m)
			return nil, err
		}
	}
	if err = m.Upload(o.tensors, tensors); err == nil {
		err = m.Upload(o.shares, shares)
	}
	if err != nil {
		o.Free(m)
		return nil, err
	}
	return o, nil
}

// Free gives the table's memory back.
func (o *Optimizer) Free(m Machine) {
	for _, p := range []Pointer{o.tensors, o.shares, o.part, o.sum} {
		if p != 0 {
			m.Free(p)
		}
	}
	*o = Optimizer{}
}

// Squares is Σ g² over all gradients, in double precision. It waits for the result.
func (o *Optimizer) Squares(m Machine) (float64, error) {
	err := m.Launch(Launch{
		Kernel: "grad_squares", Grid: [3]int{o.blocks, 1, 1}, Threads: maxThreads, Args: []Arg{ptr(o.tensors), ptr(o.shares), ptr(o.part)},
	})
	if err != nil {
		return 0, err
	}
	err = m.Launch(Launch{
		Kernel: "grad_sum", Grid: [3]int{1, 1, 1}, Threads: maxThreads, Args: []Arg{ptr(o.part), i32(o.blocks), ptr(o.sum)},
	})
	if err != nil {
		return 0, err
	}
	var sum [8]byte
	err = m.Download(sum[:], o.sum)
	return math.Float64frombits(binary.LittleEndian.Uint64(sum[:])), err
}

// Step updates all tensors.
func (o *Optimizer) Step(m Machine, a AdamW) error {
	check("Step", a.Step > 0, "step %d", a.Step)
	c1, c2 := 1-math.Pow(a.Beta1, float64(a.Step)), 1-math.Pow(a.Beta2, float64(a.Step))
	return m.Launch(Launch{
		Kernel: "adamw", Grid: [3]int{o.blocks, 1, 1}, Threads: maxThreads,
		Args: []Arg{
			ptr(o.tensors), ptr(o.shares), f32(a.GradScale), f64(a.LR * a.WeightDecay), f32(a.Beta2), f32(1 - a.Beta1), f32(1 - a.Beta2),
			f32(a.Eps), f32(a.LR / c1), f32(math.Sqrt(c2)),
		},
	})
}
