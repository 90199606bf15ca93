package model

import (
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

func (p *Policy) headChunk() int { return max(headElements/p.config.VocabSize, headRows) }

// score computes the log-probability and the entropy (nats) of each target from
// the hidden states [T, C] of its row. Results have the length of rows.
func score[F float](p *Policy, scratch *torch.Scope, hidden *torch.Tensor, rows []int, targets []int32) (logprobs, entropies []F) {
	logprobs, entropies = make([]F, len(rows)), make([]F, len(rows))
	for lo := 0; lo < len(rows); lo += p.headChunk() {
		hi := min(lo+p.headChunk(), len(rows))
		s := scratch.Nest()
		logits := Logits(p, s, gather[F](s, hidden, rows[lo:hi]))
		native.Logprob(torch.Data[F](logits), targets[lo:hi], p.config.VocabSize, logprobs[lo:hi], entropies[lo:hi], nil)
		s.Close()
	}
	return logprobs, entropies
}

// scoreBackward writes the gradient of the hidden states into dhidden [T, C],
// given that of the log-probabilities, and adds the head's to grad. It computes
// the logits again rather than keep them.
func scoreBackward[F float](p *Policy, scratch *torch.Scope, grad *Weights, hidden *torch.Tensor, rows []int, targets []int32, dlogprobs []F, dhidden *torch.Tensor) {
	dhidden.Zero()
	for lo := 0; lo < len(rows); lo += p.headChunk() {
		hi := min(lo+p.headChunk(), len(rows))
		s := scratch.Nest()
		h := gather[F](s, hidden, rows[lo:hi])
		logits := Logits(p, s, h)
		data, lse, lp := torch.Data[F](logits), make([]F, hi-lo), make([]F, hi-lo)
		native.Logprob(data, targets[lo:hi], p.config.VocabSize, lp, nil, lse)
		native.LogprobBackward(data, targets[lo:hi], p.config.VocabSize, lse, dlogprobs[lo:hi])
		torch.AddMatMul(grad.Head.W, s.Own(logits.T()), h)
		torch.MatMul(h, logits, p.weights.Head.W)
		scatter[F](dhidden, h, rows[lo:hi])
		s.Close()
	}
}

// gather copies rows of a matrix together.
func gather[F float](s *torch.Scope, from *torch.Tensor, rows []int) *torch.Tensor {
	width := from.Shape()[1]
	out := s.Empty(len(rows), width)
	dst, src := torch.Data[F](out), torch.Data[F](from)
	for i, r := range rows {
		copy(dst[i*width:(i+1)*width], src[r*width:])
	}
	return out
}

// scatter is the inverse of gather.
func scatter[F float](to, from *torch.Tensor, rows []int) {
	width := to.Shape()[1]
	dst, src := torch.Data[F](to), torch.Data[F](from)
	for i, r := range rows {
		copy(dst[r*width:(r+1)*width], src[i*width:])
	}
}
