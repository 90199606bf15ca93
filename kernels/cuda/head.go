package cuda

// softmaxThreads is the block that reads a row of logits for its softmax: the same in
// scoring and in sampling, so that both have the same sums. A step of few rows has no
// other threads.
const softmaxThreads = 512

// HeadRowSize is the bytes of a row's running softmax.
const HeadRowSize = 24

// Product multiplies on the machine, for Head.
type Product interface {
	// Logits computes out [R, n] = hidden [R, C] @ W[first:first+n, C]ᵀ.
	Logits(out Pointer, first, n int) error
	// Backward takes dlogits [R, n] into the gradients: dhidden += dlogits @ W[first:first+n],
	// dW[first:first+n] += dlogitsᵀ @ hidden.
	Backward(dlogits Pointer, first, n int) error
}

// Head scores rows against a vocabulary, Chunk tokens of it at a time.
type Head struct {
	DType              DType
	Rows, Vocab, Chunk int
	// Logits is [Rows, Chunk] of DType, Stats [Rows] of HeadRowSize bytes, Target
	// [Rows] int64.
	Logits, Stats, Target Pointer
}

func (h Head) chunks(f func(first, n int) error) error {
	check("Head", h.Rows > 0 && h.Vocab > 0 && h.Chunk > 0, "%d rows, vocabulary of %d in chunks of %d", h.Rows, h.Vocab, h.Chunk)
	for first := 0; first < h.Vocab; first += h.Chunk {
		if err := f(first, min(h.Chunk, h.Vocab-first)); err != nil {
			return err
		}
	}
	return nil
}

// Score computes, in float32 [Rows] each, the log-probability of the target, the
// entropy in nats, and the log of the softmax's denominator.
func (h Head) Score(m Machine, p Product, logprob, entropy, lse Pointer) error {
	err := h.chunks(func(first, n int) error {
		if err := p.Logits(h.Logits, first, n); err != nil {
			return err
		}
		return m.Launch(Launch{
			Kernel: "head_update_" + h.DType.String(), Grid: [3]int{h.Rows, 1, 1}, Threads: softmaxThreads,
			Args: []Arg{ptr(h.Logits), ptr(h.Target), i32(n), i32(first), ptr(h.Stats)},
		})
	})
	if err != nil {
		return err
	}
	return m.Launch(Launch{
		Kernel: "head_finish", Grid: [3]int{ceil(h.Rows, maxThreads), 1, 1}, Threads: maxThreads,
		Args: []Arg{ptr(h.Stats), i32(h.Rows), ptr(logprob), ptr(entropy), ptr(lse)},
	})
}

// Backward computes the logits again, chunk by chunk, and hands p their gradient,
// given lse from Score and g = dLoss/dLogprob, [Rows] each.
func (h Head) Backward(m Machine, p Product, lse, g Pointer) error {
	return h.chunks(func(first, n int) error {
		if err := p.Logits(h.Logits, first, n); err != nil {
			return err
		}
		err := m.Launch(Launch{
			Kernel: "head_backward_" + h.DType.String(), Grid: [3]int{h.Rows, 1, 1}, Threads: maxThreads,
			Args: []Arg{ptr(h.Logits), ptr(h.Target), ptr(lse), ptr(g), i32(n), i32(first)},
		})
		if err != nil {
			return err
		}
		return p.Backward(h.Logits, first, n)
	})
}
