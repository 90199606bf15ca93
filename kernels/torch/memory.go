package torch

import "sync/atomic"

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

var allocated [purposes]atomic.Int64

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
	return &account{p, bytes}
}

func (a *account) close() {
	if a != nil {
		allocated[a.purpose].Add(-a.bytes)
	}
}
