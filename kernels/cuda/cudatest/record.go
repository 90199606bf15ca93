package cudatest

import (
	"encoding/binary"
	"errors"
	"math"
	"reflect"

	"github.com/ssr-go/ssr/kernels/cuda"
)

// Recorder is a Machine that stands for one with CUDA graphs: what is recorded runs, and
// runs again where a graph would be replayed, which is an error if it then launches
// anything else than it did.
type Recorder struct {
	cuda.Machine
	// Made and Replayed count recordings and their repetitions.
	Made, Replayed int
	launches       []cuda.Launch
}

var _ cuda.Recorder = (*Recorder)(nil)

func (r *Recorder) Launch(l cuda.Launch) error {
	r.launches = append(r.launches, l)
	return r.Machine.Launch(l)
}

func (r *Recorder) Record(f func() error) (cuda.Recording, error) {
	r.Made++
	r.launches = nil
	if err := f(); err != nil {
		return nil, err
	}
	return &recording{r, f, r.launches}, nil
}

type recording struct {
	r        *Recorder
	f        func() error
	launches []cuda.Launch
}

func (r *recording) Replay() error {
	r.r.Replayed++
	r.r.launches = nil
	err := r.f()
	if err == nil && !reflect.DeepEqual(r.r.launches, r.launches) {
		err = errors.New("cudatest: what was recorded launches other kernels, or on other memory, than it did then")
	}
	return err
}

func (r *recording) Free() {}

// testRecord: what was recorded reads its memory anew, and where all recordings were
// freed others can be made.
func testRecord(b bench) {
	m, ok := b.m.(cuda.Recorder)
	if !ok {
		b.Skip("this machine does not record")
	}
	in, out := b.put([]float32{1, 3}), b.room(4)
	for range 2 {
		work, err := m.Record(func() error { return cuda.SwiGLU(m, cuda.F32, cuda.F32, in, out, 1, 1) })
		b.ok(err)
		for _, x := range [][2]float64{{1, 3}, {2, 5}, {-1, 4}} {
			bytes, err := binary.Append(nil, binary.LittleEndian, []float32{float32(x[0]), float32(x[1])})
			b.ok(err)
			b.ok(m.Upload(in, bytes))
			b.ok(work.Replay())
			b.near(cuda.F32, "replayed", getAs(b, cuda.F32, out, 1), []float64{x[0] / (1 + math.Exp(-x[0])) * x[1]})
		}
		work.Free()
	}
}
