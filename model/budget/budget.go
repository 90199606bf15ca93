// Package budget plans the memory of a training run before anything is allocated:
// weights, gradients, optimizer state, activations and the KV cache of every replica
// are one sum. What training and sampling need follows from the model's shape, pass
// by pass (model.TrainingMemory, engine.Memory); the KV cache takes what is left of a
// device whose memory is known. There is no utilisation fraction to guess, and what
// does not fit is refused with the list of what takes how much.
package budget

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/engine"
)

// Run is what decides how much memory a run takes.
type Run struct {
	Model model.Config
	// Options are those of the first of so many Replicas; Workers is not 0.
	Options  model.Options
	Replicas int
	// MicroBatch and Longest are the most tokens of a micro-batch and of a sequence.
	MicroBatch, Longest int
	// Engine generates in each replica; nil where nothing does. A CacheBytes of 0 is
	// what is left of the device, or the engine's default where that is unknown.
	Engine *engine.Options
	// Rescores says that each replica scores micro-batches before its updates.
	Rescores bool
	// Reference says that a frozen float32 policy scores beside the first replica.
	Reference bool
	// Device is the bytes of the device of each replica; 0 means unknown.
	Device int64
}

// Plan is the most bytes of a run's tensors that are in memory at a time.
type Plan struct {
	// Footprint is training in each of Replicas.
	model.Footprint
	Replicas int
	// Cache is the KV cache of each replica, Sampling the activations of generation.
	Cache, Sampling int64
	// Reference is the frozen policy.
	Reference int64
}

// ErrTooLarge is what Make wraps where a device is too small.
var ErrTooLarge = errors.New("more memory is needed than there is")

// Make plans a run. Where a device is too small, the plan is of what would be needed
// at least, beside an error.
func Make(r Run) (p Plan, err error) {
	p.Replicas = r.Replicas
	w := r.Options.Workers
	if w <= 0 || r.Replicas <= 0 || r.MicroBatch <= 0 || r.Longest <= 0 {
		return p, fmt.Errorf("budget: %d workers, %d replicas, micro-batches of %d and sequences of %d tokens must be positive", w, r.Replicas, r.MicroBatch, r.Longest)
	}
	lengths := full(r.MicroBatch, r.Longest)
	if p.Footprint, err = model.TrainingMemory(r.Model, r.Options, w, lengths); err != nil {
		return p, fmt.Errorf("budget: %w", err)
	}
	if r.Rescores {
		scoring, reserved := model.ScoringMemory(r.Model, r.Options, w, lengths)
		p.Activations += scoring
		p.Reserved += reserved
	}
	if r.Reference {
		frozen := model.Options{Device: r.Options.Device}
		f, err := model.TrainingMemory(r.Model, frozen, w, []int{1})
		if err != nil {
			return p, fmt.Errorf("budget: %w", err)
		}
		scoring, reserved := model.ScoringMemory(r.Model, frozen, w, lengths)
		p.Reference = f.Weights + scoring
		p.Reserved += reserved
	}
	if r.Engine != nil {
		var reserved int64
		p.Cache, p.Sampling, reserved = engine.Memory(r.Model, r.Options, w, *r.Engine)
		p.Reserved += reserved
	}
	if r.Device == 0 {
		return p, nil
	}
	if r.Engine != nil && r.Engine.CacheBytes <= 0 {
		block := model.CacheBlock(r.Model, r.Options)
		least := int64((r.Longest+native.BlockTokens-1)/native.BlockTokens) * block
		p.Cache = max(least, (r.Device-p.Total()-p.Sampling-p.Reference)/block*block)
	}
	if p.device() > r.Device {
		return p, fmt.Errorf("%w: a device has %s, and its replica needs %s", ErrTooLarge, Size(r.Device), Size(p.device()))
	}
	return p, nil
}

// device is what the first replica's takes; no other takes more.
func (p Plan) device() int64 { return p.Total() + p.Sampling + p.Cache + p.Reference }

// All is the sum over the replicas.
func (p Plan) All() int64 {
	return int64(p.Replicas)*(p.Total()+p.Sampling+p.Cache) + p.Reference
}

// String lists the parts.
func (p Plan) String() string {
	text := Size(p.All()) + " at most: "
	if p.Replicas > 1 {
		text += fmt.Sprintf("%d replicas, each of ", p.Replicas)
	}
	text += fmt.Sprintf("weights %s, gradients %s, optimizer %s, activations %s",
		Size(p.Weights), Size(p.Gradients), Size(p.Optimizer), Size(p.Activations))
	if p.Sampling+p.Cache > 0 {
		text += fmt.Sprintf(", sampling %s, KV cache %s", Size(p.Sampling), Size(p.Cache))
	}
	if p.Reference > 0 {
		text += "; reference " + Size(p.Reference)
	}
	return text
}

// Size writes bytes in MiB, rounded up.
func Size(n int64) string { return strconv.FormatInt((n+1<<20-1)>>20, 10) + " MiB" }

// full are the lengths of sequences that fill a micro-batch as expensively as can be:
// with the longest ones.
func full(budget, longest int) []int {
	lengths := slices.Repeat([]int{longest}, budget/longest)
	if rest := budget % longest; rest > 0 && budget > longest {
		lengths = append(lengths, rest)
	}
	if len(lengths) == 0 {
		lengths = []int{longest} // a sequence beyond the budget is a micro-batch of its own
	}
	return lengths
}
