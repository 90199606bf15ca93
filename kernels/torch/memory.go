package torch

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// Purpose says what memory is for.
type Purpose int

const (
	Weights Purpose = iota
	Gradients
	Optimizer
	Activations
	Cache
	purposes
)

func (p Purpose) String() string {
	return [purposes]string{"weights", "gradients", "optimizer", "activations", "cache"}[p]
}

// gauge is a number of bytes now, and the most that it has been.
type gauge struct{ now, most atomic.Int64 }

func (g *gauge) add(bytes int64) {
	for now := g.now.Add(bytes); ; {
		if most := g.most.Load(); now <= most || g.most.CompareAndSwap(most, now) {
			return
		}
	}
}

func (g *gauge) reset() { g.most.Store(g.now.Load()) }

var (
	allocated [purposes]gauge
	total     gauge
)

// Peak is the most bytes that live tensors have owned at a time since the program
// started, or since ResetPeak.
func Peak() int64 { return total.most.Load() }

// Peaks is Peak of each purpose alone, which need not have been at the same time.
func Peaks() map[Purpose]int64 {
	return byPurpose(func(g *gauge) int64 { return g.most.Load() })
}

// ResetPeak makes what is owned now the peak.
func ResetPeak() {
	total.reset()
	for p := range allocated {
		allocated[p].reset()
	}
}

// Allocated is the number of bytes that live tensors own, by purpose.
func Allocated() map[Purpose]int64 {
	return byPurpose(func(g *gauge) int64 { return g.now.Load() })
}

func byPurpose(of func(*gauge) int64) map[Purpose]int64 {
	out := make(map[Purpose]int64, purposes)
	for p := range purposes {
		out[p] = of(&allocated[p])
	}
	return out
}

// account is the entry of one owning tensor.
type account struct {
	purpose Purpose
	bytes   int64
}

func newAccount(p Purpose, bytes int64) *account {
	allocated[p].add(bytes)
	total.add(bytes)
	return &account{p, bytes}
}

func (a *account) close() {
	if a != nil {
		allocated[a.purpose].add(-a.bytes)
		total.add(-a.bytes)
	}
}

// largePage is the size of a large page on the processors that have one.
const largePage = 2 << 20

// largePages asks the system to back memory with large pages as it is touched.
// Weights and caches are read over and over in an order that small pages make the
// processor walk the page table for. A system that has none says so; nothing depends
// on it.
func largePages(p unsafe.Pointer, bytes uintptr) {
	skip := -uintptr(p) % largePage
	if bytes < skip+largePage {
		return
	}
	whole := unsafe.Slice((*byte)(unsafe.Add(p, skip)), (bytes-skip)/largePage*largePage)
	_ = syscall.Madvise(whole, syscall.MADV_HUGEPAGE)
}
