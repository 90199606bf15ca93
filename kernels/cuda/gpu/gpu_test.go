//go:build gpu

package gpu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ssr-go/ssr/kernels/cuda"
	"github.com/ssr-go/ssr/kernels/cuda/cudatest"
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
	t.Logf("on %v", devices[0])
	return m
}

func TestKernels(t *testing.T) {
	open(t)
	cudatest.Test(t, func(t *testing.T) cuda.Machine { return open(t) })
}

// TestRing reduces over every GPU at hand; with one it is the identity.
func TestRing(t *testing.T) {
	devices, why := Devices()
	if len(devices) == 0 {
		t.Skip("needs a GPU: " + why)
	}
	const length = 1 << 16
	var machines []*Machine
	var vectors []cuda.Pointer
	for i := range devices {
		m, err := Open(i)
		if err != nil {
			t.Fatal(err)
		}
		p, err := m.Alloc(length * 4)
		if err != nil {
			t.Fatal(err)
		}
		bytes := make([]byte, 0, length*4)
		for j := range length {
			bytes = binary.LittleEndian.AppendUint32(bytes, math.Float32bits(float32((i+1)*(j%1000))))
		}
		if err := m.Upload(p, bytes); err != nil {
			t.Fatal(err)
		}
		machines, vectors = append(machines, m), append(vectors, p)
	}
	ring, err := NewRing(machines)
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
	sums, errs := make([]float64, n), make([]error, n)
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() {
			errs[i] = func() (err error) {
				if err = ring.ReduceScatter(t.Context(), i, vectors[i], bounds); err != nil {
					return err
				}
				if err = ring.AllGather(t.Context(), i, vectors[i], bounds); err != nil {
					return err
				}
				sums[i], err = ring.Sum(t.Context(), i, float64(i+1))
				return err
			}()
		})
	}
	wait.Wait()
	for i, m := range machines {
		if errs[i] != nil || sums[i] != float64(factor) {
			t.Fatalf("rank %d: sum %v, want %d; %v", i, sums[i], factor, errs[i])
		}
		bytes := make([]byte, length*4)
		if err := m.Download(bytes, vectors[i]); err != nil {
			t.Fatal(err)
		}
		for j := range length {
			want := float32(factor * (j % 1000))
			if j < 100 {
				want = float32((i + 1) * j)
			}
			if got := math.Float32frombits(binary.LittleEndian.Uint32(bytes[j*4:])); got != want {
				t.Fatalf("rank %d: [%d] = %v, want %v", i, j, got, want)
			}
		}
	}
}
