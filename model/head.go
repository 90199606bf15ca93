package model

import (
	"iter"

	"github.com/ssr-go/ssr/kernels/torch"
)

// How many logits exist at a time: to score, 2 MB of float32, which stay in the cache
// between the product and the softmax, and to sample, 1 MB. With a large vocabulary at
// least so many rows are taken together that the product is worth reading the head's
// weights from memory.
const (
	headElements, headRows     = 512 << 10, 16
	sampleElements, sampleRows = 256 << 10, 32
)

// logitRows is how many rows make so many logits on a CPU, or fill a GPU, but no fewer
// than least.
func (o Options) logitRows(vocab, elements, least int) int {
	return max(o.pick(elements, deviceElements)/vocab, least)
}

// LogitRows is how many rows of logits are best computed at a time to sample from.
func (o Options) LogitRows(vocab int) int { return o.logitRows(vocab, sampleElements, sampleRows) }

// LogitRows are those of the policy's options.
func (p *Policy) LogitRows() int { return p.options.LogitRows(p.config.VocabSize) }

// headChunks yields the bounds of the chunks of n rows.
func (p *Policy) headChunks(n int) iter.Seq2[int, int] {
	size := p.options.logitRows(p.config.VocabSize, headElements, headRows)
	return func(yield func(lo, hi int) bool) {
		for lo := 0; lo < n && yield(lo, min(lo+size, n)); lo += size {
		}
	}
}

// keepsLogits says whether a training segment keeps its logits for the backward
// pass: only with so small a vocabulary that they are no larger than the
// activations of one layer.
func (p *Policy) keepsLogits() bool {
	c := p.config
	layer := 2*c.Hidden + (2*c.Heads+2*c.KVHeads)*c.HeadDim + 2*c.Intermediate
	return !p.options.Recompute && c.VocabSize <= layer
}

// scores are what the head says about the targets of a segment, a vector each: the
// natural log of their probability, the entropy (nats) and the log of the denominator.
type scores struct{ logprobs, entropies, lse *torch.Tensor }

// score runs the head over the given rows of hidden [T, C], a chunk at a time. The
// result is the scope's. kept, if not nil, receives the logits [len(rows), V].
func score(p *Policy, scope *torch.Scope, hidden *torch.Tensor, rows, targets indices, kept *torch.Tensor) scores {
	n := len(rows.host)
	out := scores{scope.Empty(n), scope.Empty(n), scope.Empty(n)}
	for lo, hi := range p.headChunks(n) {
		s := scope.Nest()
		var logits *torch.Tensor
		if kept != nil {
			logits = s.Own(kept.Rows(lo, hi))
		} else {
			logits = s.Empty(hi-lo, p.config.VocabSize)
		}
		p.project(logits, p.gather(s, hidden, rows.part(s, lo, hi)))
		part := func(t *torch.Tensor) *torch.Tensor { return s.Own(t.Rows(lo, hi)) }
		p.ops.logprob(logits, targets.part(s, lo, hi), part(out.logprobs), part(out.entropies), part(out.lse))
		s.Close()
	}
	return out
}

// scoreBackward writes the gradient of the hidden states into dhidden [T, C],
// given that of the log-probabilities, and adds the head's to grad. Logits that
// score did not keep are computed again.
func (t *tape) scoreBackward(p *Policy, scope *torch.Scope, grad *Weights, dlogprobs, dhidden *torch.Tensor) {
	dhidden.Zero()
	for lo, hi := range p.headChunks(len(t.rows.host)) {
		s := scope.Nest()
		rows := t.rows.part(s, lo, hi)
		h := p.gather(s, t.hidden, rows)
		var logits *torch.Tensor
		if t.logits != nil {
			logits = s.Own(t.logits.Rows(lo, hi))
		} else {
			logits = s.Empty(hi-lo, p.config.VocabSize)
			p.project(logits, h)
		}
		p.ops.logprobBackward(logits, t.targets.part(s, lo, hi), s.Own(t.scores.lse.Rows(lo, hi)), s.Own(dlogprobs.Rows(lo, hi)))
		if grad.Head.W != nil {
			p.ops.weightGradient(grad.Head.W, logits, h)
		}
		p.ops.inputGradient(p.weights.Head, logits, h)
		p.ops.scatter(dhidden, h, rows)
		s.Close()
	}
}
