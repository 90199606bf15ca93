//go:build gpu

package gpu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/cuda/cudatest"
	"github.com/ssr-go/ssr/kernels/torch"
)

var entry = regexp.MustCompile(`(?m)^\.visible \.entry (\w+)\(`)

// TestEveryKernelCompiles needs NVRTC and no GPU.
func TestEveryKernelCompiles(t *testing.T) {
	for _, major := range []int{8, 9, 10} {
		t.Run(fmt.Sprintf("compute_%d0", major), func(t *testing.T) {
			for _, p := range cuda.Programs() {
				ptx, err := Compile(p, major, 0)
				if errors.Is(err, errArchitecture) && major >= 10 {
					t.Skip(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, m := range entry.FindAllStringSubmatch(ptx, -1) {
					got = append(got, m[1])
				}
				want := slices.Clone(p.Kernels)
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("%s: PTX has %v, want %v", p.Name, got, want)
				}
				if target := fmt.Sprintf(".target sm_%d0", major); !strings.Contains(ptx, target) {
					t.Errorf("%s: PTX lacks %q", p.Name, target)
				}
			}
		})
	}
}

// TestWhatTheVersionLacks holds what compat/cuda.h stands in for, by the version that
// changed it. It needs NVRTC and no GPU.
func TestWhatTheVersionLacks(t *testing.T) {
	changed := map[int][]string{
		12: {"cuGraphAddKernelNode", "cuGraphExecKernelNodeSetParams", "cuGraphKernelNodeGetParams", "cuGraphKernelNodeSetParams"},
		13: {"cuCtxCreate", "cuGraphAddDependencies", "cuGraphGetEdges", "cuGraphNodeGetDependencies", "cuGraphNodeGetDependentNodes",
			"cuGraphRemoveDependencies", "cuMemAdvise", "cuMemPrefetchAsync"},
	}
	major, got := version()/1000, lacks()
	t.Logf("CUDA %d.%d lacks %v", major, version()%1000/10, got)
	for since, names := range changed {
		for _, name := range names {
			if slices.Contains(got, name) != (major >= since) {
				t.Errorf("%s changed in CUDA %d; the header of %d lacks %v", name, since, version(), got)
			}
		}
	}
	missing := librariesLack()
	t.Logf("the driver and the NVRTC at hand lack %v", missing)
	for _, name := range missing {
		if strings.HasPrefix(name, "nvrtc") { // Compile calls most of them
			t.Errorf("NVRTC lacks %s", name)
		}
	}
}

func TestCompileTellsWhere(t *testing.T) {
	_, err := Compile(cuda.Program{Name: "bad.cu", Source: "__global__ void f() { return 1 }"}, 8, 0)
	if err == nil || !strings.Contains(err.Error(), "bad.cu") || !strings.Contains(err.Error(), "error") {
		t.Errorf("%v", err)
	}
}

func TestNoDeviceIsAnError(t *testing.T) {
	devices, why := Devices()
	if len(devices) == 0 && why == "" {
		t.Error("no device and no reason")
	}
	if _, err := Open(len(devices)); err == nil || !strings.Contains(err.Error(), "no GPU number") {
		t.Errorf("%v", err)
	}
}

// open is a machine on the first GPU; where there is none, the test is skipped.
func open(t testing.TB) *Machine {
	devices, why := Devices()
	if len(devices) == 0 {
		t.Skip("needs a GPU: " + why)
	}
	m, err := Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	t.Logf("on %v", devices[0])
	return m
}

func TestKernels(t *testing.T) {
	open(t)
	cudatest.Test(t, func(t *testing.T) cuda.Machine { return open(t) })
}

// TestRecordingThatFails: what goes wrong while recording is told, and the machine records
// and computes after it.
func TestRecordingThatFails(t *testing.T) {
	m := open(t)
	p, err := m.Alloc(16)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free(p)
	swiglu := func() error { return cuda.SwiGLU(m, cuda.F32, cuda.F32, p, p.At(2, 4), 1, 1) }
	lost := errors.New("lost")
	for name, second := range map[string]func() error{
		"an error":            func() error { return lost },
		"an error in the end": func() error { return errors.Join(swiglu(), lost) },
		"a wait":              func() error { return m.Download(make([]byte, 4), p) },
		"a panic":             func() error { panic(lost) },
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			r, err := func() (r cuda.Recording, err error) {
				defer func() {
					if recover() != nil {
						err = lost
					}
				}()
				return m.Record(func() error {
					if calls++; calls == 2 {
						return second()
					}
					return swiglu()
				})
			}()
			if err == nil || r != nil || calls != 2 {
				t.Errorf("%d calls, recording %v, error %v", calls, r, err)
			}
			t.Log(err)
			in := make([]byte, 16)
			binary.LittleEndian.PutUint32(in, math.Float32bits(2))
			binary.LittleEndian.PutUint32(in[4:], math.Float32bits(3))
			if err := m.Upload(p, in); err != nil {
				t.Fatal(err)
			}
			if r, err = m.Record(swiglu); err != nil {
				t.Fatal(err)
			}
			defer r.Free()
			if err := errors.Join(r.Replay(), m.Download(in, p)); err != nil {
				t.Fatal(err)
			}
			want := 2 / (1 + math.Exp(-2)) * 3
			if got := math.Float32frombits(binary.LittleEndian.Uint32(in[8:])); math.Abs(float64(got)-want) > 1e-5 {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
}

// TestEveryThread: the driver is called from threads that have called nothing of CUDA's.
func TestEveryThread(t *testing.T) {
	devices, why := Devices()
	if len(devices) == 0 {
		t.Skip("needs a GPU: " + why)
	}
	var wait, all sync.WaitGroup
	all.Add(8)
	for range 8 {
		wait.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			all.Done()
			all.Wait() // so that each has a thread of its own
			for i, d := range devices {
				if free, err := Free(i); err != nil || free <= 0 || free > d.Memory {
					t.Errorf("device %d of %d bytes: %d free, %v", i, d.Memory, free, err)
				}
			}
		})
	}
	wait.Wait()
}

// TestRing reduces over every GPU at hand; with one it is the identity.
func TestRing(t *testing.T) {
	devices, why := Devices()
	if len(devices) == 0 {
		t.Skip("needs a GPU: " + why)
	}
	const length = 1 << 16
	var numbers []int
	var vectors []*torch.Tensor
	for i := range devices {
		host := torch.New(torch.Gradients, torch.Float32, length)
		for j, x := 0, torch.Data[float32](host); j < length; j++ {
			x[j] = float32((i + 1) * (j % 1000))
		}
		v := torch.CUDA(i).New(torch.Gradients, torch.Float32, length)
		torch.Copy(v, host)
		host.Free()
		defer v.Free()
		numbers, vectors = append(numbers, i), append(vectors, v)
	}
	ring, err := NewRing(numbers)
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	n := len(devices)
	factor := n * (n + 1) / 2
	bounds := []int{100}
	for i := range n {
		bounds = append(bounds, 100+(length-100)*(i+1)/n)
	}
	errs := make([]error, n)
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() {
			if errs[i] = ring.ReduceScatter(t.Context(), i, vectors[i], bounds); errs[i] == nil {
				errs[i] = ring.AllGather(t.Context(), i, vectors[i], bounds)
			}
		})
	}
	wait.Wait()
	for i, v := range vectors {
		if errs[i] != nil {
			t.Fatalf("rank %d: %v", i, errs[i])
		}
		host := v.OnCPU()
		defer host.Free()
		for j, got := range torch.Data[float32](host) {
			want := float32(factor * (j % 1000))
			if j < 100 {
				want = float32((i + 1) * j)
			}
			if got != want {
				t.Fatalf("rank %d: [%d] = %v, want %v", i, j, got, want)
			}
		}
	}
}

// TestRingEnds: a call that nobody answers ends with its context, and the ring with it;
// a closed ring fails. It needs two GPUs.
func TestRingEnds(t *testing.T) {
	devices, why := Devices()
	if len(devices) < 2 {
		t.Skip("needs two GPUs: " + why)
	}
	ring, err := NewRing([]int{0, 1})
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	v := torch.CUDA(0).New(torch.Gradients, torch.Float32, 10)
	defer v.Free()
	// A context that ends before the call has begun leaves the ring whole.
	for wait := 50 * time.Millisecond; ring.whole() == nil; wait *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		err := ring.AllGather(ctx, 0, v, []int{0, 5, 10})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("without rank 1: %v", err)
		}
	}
	if err := ring.AllGather(t.Context(), 0, v, []int{0, 5, 10}); !errors.Is(err, errEnded) {
		t.Errorf("after that: %v", err)
	}
	ring.Close()
	if err := ring.ReduceScatter(t.Context(), 0, v, []int{0, 5, 10}); !errors.Is(err, errEnded) {
		t.Errorf("closed: %v", err)
	}
}

// TestRingOfWhatIsNotThere needs no GPU.
func TestRingOfWhatIsNotThere(t *testing.T) {
	devices, _ := Devices()
	for want, numbers := range map[string][]int{"no GPU number": {len(devices)}, "a ring of no GPU": nil} {
		if _, err := NewRing(numbers); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a ring of %v: %v, want %q", numbers, err, want)
		}
	}
	if _, err := JoinRing(nil, len(devices), 0, 2); err == nil || !strings.Contains(err.Error(), "no GPU number") {
		t.Errorf("rank 0 of 2 without a GPU: %v", err)
	}
}
