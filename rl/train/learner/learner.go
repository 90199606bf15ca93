// Package learner lets the training loop train a model.Policy, in place, on the
// tensors that generate.
package learner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"slices"

	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

// What is beside the weights of a checkpoint: the optimizer's state, the adapters of
// a policy that has some, and the mean of the weights of one that keeps one.
const (
	optimizerFile = "optimizer.safetensors"
	adapterDir    = "adapter"
	meanDir       = "ema"
)

// Learner is a train.Learner over a policy, or over several replicas of one. What it
// saves is a whole model in Hugging Face layout, tokenizer included, and the
// optimizer's state; neither tells how many replicas there were. Adapters are
// merged into that model, and saved apart in PEFT's layout, from which they are
// loaded again over the policy's own weights.
type Learner struct {
	group
	policies  []*model.Policy // the replicas in this process
	elsewhere []elsewhere     // those after them
	ring      ring            // that the learner is to close, or nil
	tokenizer *token.Tokenizer
	// Base names, for the readers of a saved adapter, the model it belongs to.
	Base string
}

// elsewhere is a replica in another process; first is the policy of rank 0.
type elsewhere interface {
	load(dir string, first *model.Policy) error
	standIn(first *model.Policy) (q *model.Policy, free func(), err error)
}

// group is a replicas.Group, in one process or several.
type group interface {
	Replicas() int
	Version() int64
	Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error
	Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error)
	Step(ctx context.Context, o train.AdamW) (float64, error)
}

var (
	_ train.Learner    = (*Learner)(nil)
	_ train.Scorer     = (*Learner)(nil)
	_ train.Replicated = (*Learner)(nil)
)

// Close frees what sums gradients between GPUs. The policies are closed after it.
func (l *Learner) Close() {
	if l.ring != nil {
		l.ring.Close()
	}
}

// New returns a learner of one policy, which stays the caller's to close.
func New(p *model.Policy, t *token.Tokenizer) *Learner {
	l, err := NewReplicated([]*model.Policy{p}, t)
	if err != nil {
		panic(err) // a policy of several was given alone
	}
	return l
}

// NewReplicated returns a learner of n policies with equal weights, number i made
// with model.Options.Shard{i, n}, all on GPUs, each on its own, or all on one device of
// the process's memory. They stay the caller's to close.
func NewReplicated(policies []*model.Policy, t *token.Tokenizer) (*Learner, error) {
	if len(policies) == 0 {
		return nil, errors.New("learner: no policy")
	}
	for i, p := range policies[1:] {
		if name := difference(policies[0], p); name != "" {
			return nil, fmt.Errorf("learner: %s of replica %d is not that of replica 0; load all from one folder", name, i+1)
		}
	}
	l := &Learner{policies: policies, tokenizer: t}
	var err error
	if l.group, err = l.join(policies); err != nil {
		l.Close()
		return nil, fmt.Errorf("learner: %w", err)
	}
	return l, nil
}

// Policies are the replicas in this process, whose weights Step updates in place.
func (l *Learner) Policies() []*model.Policy { return l.policies }

// difference names a tensor in which two policies differ; "" means none.
func difference(a, b *model.Policy) string {
	for _, of := range []func(*model.Policy) []model.Parameter{(*model.Policy).Parameters, (*model.Policy).Trained} {
		p, q := of(a), of(b)
		if len(p) != len(q) {
			return "the list of tensors"
		}
		for i := range p {
			if p[i].Name != q[i].Name || !equal(p[i].Tensor, q[i].Tensor) {
				return p[i].Name
			}
		}
	}
	return ""
}

// equal says whether two tensors have the same bytes, wherever they are.
func equal(a, b *torch.Tensor) (same bool) {
	onHost(a, func(a []byte) { onHost(b, func(b []byte) { same = bytes.Equal(a, b) }) })
	return same
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is one of a tensor's bytes, wherever it is.
func checksum(t *torch.Tensor) (sum uint32) {
	onHost(t, func(b []byte) { sum = crc32.Checksum(b, castagnoli) })
	return sum
}

// onHost calls f with a tensor's bytes.
func onHost(t *torch.Tensor, f func(b []byte)) {
	if t.Device() != torch.CPU {
		t = t.OnCPU()
		defer t.Free()
	}
	f(t.Bytes())
}

// Save writes the model and the optimizer's state into dir.
func (l *Learner) Save(dir string) error {
	first, others := l.policies[0], slices.Clone(l.policies[1:])
	for _, e := range l.elsewhere {
		q, free, err := e.standIn(first)
		if err != nil {
			return err
		}
		defer free()
		others = append(others, q)
	}
	err := errors.Join(
		first.Save(dir, torch.Float32),
		l.tokenizer.Save(dir),
		first.SaveOptimizer(filepath.Join(dir, optimizerFile), others...))
	if first.LoRA() != nil {
		err = errors.Join(err, first.SaveAdapter(filepath.Join(dir, adapterDir), l.Base))
	}
	mean := filepath.Join(dir, meanDir)
	switch meanErr := first.SaveMean(mean, torch.Float32, l.Base, others...); {
	case errors.Is(meanErr, model.ErrNoMean):
	case meanErr != nil:
		err = errors.Join(err, meanErr)
	case first.LoRA() == nil:
		err = errors.Join(err, l.tokenizer.Save(mean))
	}
	return err
}

// Load reads back what Save wrote, by as many replicas or others, into the same
// tensors.
func (l *Learner) Load(dir string) error {
	for _, p := range l.policies {
		if err := load(p, dir); err != nil {
			return err
		}
	}
	for _, e := range l.elsewhere {
		if err := e.load(dir, l.policies[0]); err != nil {
			return err
		}
	}
	return nil
}

// load reads one policy back.
func load(p *model.Policy, dir string) error {
	var err error
	if p.LoRA() != nil {
		err = p.LoadAdapter(filepath.Join(dir, adapterDir))
	} else {
		err = p.LoadWeights(dir)
	}
	if err != nil {
		return err
	}
	return p.LoadOptimizer(filepath.Join(dir, optimizerFile))
}

// WithReference is a Learner that can also score under a frozen policy, which
// objectives with a KL coefficient need.
type WithReference struct {
	*Learner
	Frozen *model.Policy
}

var _ train.Reference = WithReference{}

// ReferenceLogprobs scores batches under the frozen policy.
func (l WithReference) ReferenceLogprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error) {
	out, err := score(ctx, l.Frozen, batches)
	if err != nil {
		return nil, fmt.Errorf("reference: %w", err)
	}
	return out, nil
}
