package model

import (
	"iter"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/kernels/torch"
)

// headElements bounds the logits that exist at a time: 2 MB of float32, which
// stay in the cache between the product and the softmax. With a large
// vocabulary at least headRows rows are taken together.
const (
	headElements = 512 << 10
	headRows     = 16
)

// headChunks yields the bounds of the chunks of n rows.
func (p *Policy) headChunks(n int) iter.Seq2[int, int] {
	size := max(headElements/p.config.VocabSize, headRows)
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

// scores are what the head says about the targets of a segment: the natural log
// of their probability, the entropy (nats) and the log of the denominator.
type scores[F float] struct{ logprobs, entropies, lse []F }

// score runs the head over the given rows of hidden [T, C], a chunk at a time.
// kept, if not nil, receives the logits [len(rows), V].
func score[F float](p *Policy, scratch *torch.Scope, hidden *torch.Tensor, rows []int, targets []int32, kept *torch.Tensor) scores[F] {
	n := len(rows)
	out := scores[F]{make([]F, n), make([]F, n), make([]F, n)}
	for lo, hi := range p.headChunks(n) {
		s := scratch.Nest()
		var logits *torch.Tensor
		if kept != nil {
			logits = s.Own(kept.Rows(lo, hi))
		} else {
			logits = s.Empty(hi-lo, p.config.VocabSize)
		}
		project[F](p, logits, gather[F](s, hidden, rows[lo:hi]))
		native.Logprob(torch.Data[F](logits), targets[lo:hi], p.config.VocabSize, out.logprobs[lo:hi], out.entropies[lo:hi], out.lse[lo:hi])
		s.Close()
	}
	return out
}

// scoreBackward writes the gradient of the hidden states into dhidden [T, C],
// given that of the log-probabilities, and adds the head's to grad. Logits that
// score did not keep are computed again.
func (t *tape[F]) scoreBackward(p *Policy, scratch *torch.Scope, grad *Weights, dlogprobs []F, dhidden *torch.Tensor) {
	dhidden.Zero()
	for lo, hi := range p.headChunks(len(t.rows)) {
		s := scratch.Nest()
		h := gather[F](s, t.hidden, t.rows[lo:hi])
		var logits *torch.Tensor
		if t.logits != nil {
			logits = s.Own(t.logits.Rows(lo, hi))
		} else {
			logits = s.Empty(hi-lo, p.config.VocabSize)
			project[F](p, logits, h)
		}
		native.LogprobBackward(torch.Data[F](logits), t.targets[lo:hi], p.config.VocabSize, t.scores.lse[lo:hi], dlogprobs[lo:hi])
		if grad.Head.W != nil {
			torch.AddMatMul(grad.Head.W, s.Own(logits.T()), h)
		}
		torch.MatMul(h, logits, p.weights.Head.W)
		scatter[F](dhidden, h, t.rows[lo:hi])
		s.Close()
	}
}

// gather copies rows of a matrix together.
func gather[F float](s *torch.Scope, from *torch.Tensor, rows []int) *torch.Tensor {
	out := s.Empty(len(rows), from.Shape()[1])
	gatherInto[F](out, from, rows)
	return out
}

func gatherInto[F float](out, from *torch.Tensor, rows []int) {
	width := from.Shape()[1]
	dst, src := torch.Data[F](out), torch.Data[F](from)
	for i, r := range rows {
		copy(dst[i*width:(i+1)*width], src[r*width:])
	}
}

// scatter is the inverse of gather.
func scatter[F float](to, from *torch.Tensor, rows []int) {
	width := to.Shape()[1]
	dst, src := torch.Data[F](to), torch.Data[F](from)
	for i, r := range rows {
		copy(dst[r*width:(r+1)*width], src[i*width:])
	}
}
