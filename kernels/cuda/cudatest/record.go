package cudatest

import (
	"errors"
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
