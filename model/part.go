package model

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/ssr-go/ssr/kernels/torch"
)

// shardHead goes before the vectors of a shard: which one it is, and which it has.
type shardHead struct{ Index, Of, Steps, Version, Len, Master, Mean int64 }

// WriteShard writes the policy's shard of the optimizer's state for StandIn, in
// another process.
func (p *Policy) WriteShard(w io.Writer) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	lo, hi, _ := p.Shard()
	head := shardHead{
		Index: int64(p.options.Shard.Index), Of: int64(max(p.options.Shard.Of, 1)),
		Steps: p.steps(), Version: p.Version(), Len: int64(hi - lo),
	}
	if p.master != nil {
		head.Master = 1
	}
	if p.mean != nil {
		head.Mean = 1
	}
	if err := binary.Write(w, binary.LittleEndian, head); err != nil || head.Steps == 0 {
		return err
	}
	for _, s := range p.optimizerState() {
		var err error
		onHost(s.of, false, func(host *torch.Tensor) { _, err = w.Write(host.Bytes()) })
		if err != nil {
			return err
		}
	}
	return nil
}

// StandIn reads what WriteShard wrote into a policy that has p's weights, the same
// memory, and another replica's shard of the optimizer's state. It serves SaveOptimizer
// and SaveMean of p as one of the others, and nothing else; free drops it.
func (p *Policy) StandIn(r io.Reader) (q *Policy, free func(), err error) {
	var head shardHead
	if err := binary.Read(r, binary.LittleEndian, &head); err != nil {
		return nil, nil, fmt.Errorf("model: read a shard: %w", err)
	}
	q = &Policy{config: p.config, options: p.options, params: p.params, flat: p.flat, trained: p.trained, live: p.live}
	q.options.Shard = Shard{Index: int(head.Index), Of: int(head.Of)}
	lo, hi, _ := q.Shard()
	if head.Of < 1 || head.Index < 0 || head.Index >= head.Of || int64(hi-lo) != head.Len {
		return nil, nil, fmt.Errorf("model: shard %d of %d with %d elements is not of this policy", head.Index, head.Of, head.Len)
	}
	q.version.Store(head.Version)
	if head.Steps == 0 {
		return q, func() {}, nil
	}
	defer torch.Catch(&err)
	empty := func() *torch.Tensor { return torch.New(torch.Optimizer, p.flat.DType(), hi-lo) }
	q.moments = &moments{mean: empty(), square: empty(), steps: head.Steps}
	if head.Master != 0 {
		q.master = empty()
	}
	if head.Mean != 0 {
		q.mean = empty()
	}
	free = func() {
		q.moments.free()
		q.dropFollowers()
	}
	for _, s := range q.optimizerState() {
		if _, err := io.ReadFull(r, s.of.Bytes()); err != nil {
			free()
			return nil, nil, fmt.Errorf("model: read a shard: %w", err)
		}
	}
	return q, free, nil
}
