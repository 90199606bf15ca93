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

var (
	allocated [purposes]atomic.Int64
	total     atomic.Int64
	peak      atomic.Int64
)

// Peak is the most bytes that live tensors have owned at a time since the program
// started, or since ResetPeak.
func Peak() int64 { return peak.Load() }

// ResetPeak makes what is owned now the peak.
func ResetPeak() { peak.Store(total.Load()) }

// Allocated is the number of bytes that live tensors own, by purpose.
func Allocated() map[Purpose]int64 {
	out := make(map[Purpose]int64, purposes)
	for p := range purposes {
		out[p] = allocated[p].Load()
	}
	return out
}

// account is the entry of one owning tensor.
type account struct {
	purpose Purpose
	bytes   int64
}

func newAccount(p Purpose, bytes int64) *account {
	allocated[p].Add(bytes)
	for now := total.Add(bytes); ; {
		if most := peak.Load(); now <= most || peak.CompareAndSwap(most, now) {
			break
		}
	}
	return &account{p, bytes}
}

func (a *account) close() {
	if a != nil {
		allocated[a.purpose].Add(-a.bytes)
		total.Add(-a.bytes)
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
