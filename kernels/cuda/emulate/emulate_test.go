package emulate_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/cuda/cudatest"
	"github.com/ssr-go/ssr/kernels/cuda/emulate"
)

// TestKernels runs the suite with threads in several orders: a kernel that lacks a
// barrier is right in some of them only.
func TestKernels(t *testing.T) {
	for _, order := range []emulate.Order{emulate.Ascending, emulate.Descending, 7} {
		t.Run(fmt.Sprint("order ", order), func(t *testing.T) {
			cudatest.Test(t, func(t *testing.T) cuda.Machine { return &cudatest.Recorder{Machine: emulate.New(order)} })
		})
	}
}

// TestEveryKernelIsEmulated holds the emulator's table against the sources.
func TestEveryKernelIsEmulated(t *testing.T) {
	var want []string
	for _, p := range cuda.Programs() {
		want = append(want, p.Kernels...)
	}
	got := slices.DeleteFunc(emulate.Kernels(), func(name string) bool { return strings.HasPrefix(name, "faulty_") })
	slices.Sort(got)
	slices.Sort(want)
	if len(want) < 20 || !slices.Equal(got, want) {
		t.Errorf("the emulator has %v; the sources have %v", got, want)
	}
}

func TestLaunchRefuses(t *testing.T) {
	m := emulate.New(emulate.Ascending)
	for want, l := range map[string]cuda.Launch{
		"no such kernel":         {Kernel: "nothing", Grid: [3]int{1, 1, 1}, Threads: 32},
		"3 parameters, not 1":    {Kernel: "swiglu_f32", Grid: [3]int{1, 1, 1}, Threads: 32, Args: make([]cuda.Arg, 1)},
		"has 8 bytes, not 4":     {Kernel: "swiglu_f32", Grid: [3]int{1, 1, 1}, Threads: 32, Args: []cuda.Arg{{Size: 4}, {Size: 8}, {Size: 4}}},
		"one row of whole warps": {Kernel: "swiglu_f32", Grid: [3]int{1, 1, 1}, Threads: 33, Args: make([]cuda.Arg, 3)},
	} {
		if err := m.Launch(l); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one with %q", err, want)
		}
	}
}

// TestFaultsAreFound: a suite that passes means something only if a kernel without
// its barriers does not.
func TestFaultsAreFound(t *testing.T) {
	run := func(kernel string, order emulate.Order) ([]byte, error) {
		m := emulate.New(order)
		out := make([]byte, 2*64*4)
		p, err := m.Alloc(len(out))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Free(p)
		err = m.Launch(cuda.Launch{Kernel: kernel, Grid: [3]int{2, 1, 1}, Threads: 64, Args: []cuda.Arg{{Bits: uint64(p), Size: 8}}})
		if err != nil {
			return nil, err
		}
		return out, m.Download(out, p)
	}
	for _, kernel := range []string{"faulty_exit", "faulty_shuffle"} {
		if _, err := run(kernel, emulate.Ascending); err == nil || !strings.Contains(err.Error(), "barriers") {
			t.Errorf("%s: %v", kernel, err)
		}
	}
	for _, kernel := range []string{"faulty_race", "faulty_copy"} {
		up, err := run(kernel, emulate.Ascending)
		if err != nil {
			t.Fatal(err)
		}
		down, err := run(kernel, emulate.Descending)
		if err != nil || slices.Equal(up, down) {
			t.Errorf("%s gives the same in both orders (%v)", kernel, err)
		}
	}
}

// TestRecordingsDoNotChange: a recording that launches something else the second time is
// found.
func TestRecordingsDoNotChange(t *testing.T) {
	m := &cudatest.Recorder{Machine: emulate.New(emulate.Ascending)}
	p, err := m.Alloc(4 * 4)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free(p)
	to := 2
	r, err := m.Record(func() error { return cuda.SwiGLU(m, cuda.F32, cuda.F32, p, p.At(to, 4), 1, 1) })
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Replay(); err != nil {
		t.Fatal(err)
	}
	to = 3
	if err := r.Replay(); err == nil || !strings.Contains(err.Error(), "other memory") {
		t.Errorf("%v", err)
	}
}
