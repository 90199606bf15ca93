package cuda

// Sampling is how one row is sampled, in the layout that the kernel reads. The
// order is temperature, top-k, top-p, min-p.
type Sampling struct {
	// ID, Seed and Position name the draw, as model/gen's Stream does.
	ID, Seed, Position uint64
	// Temperature divides the logits; 0 is greedy (lowest id on a tie).
	Temperature float32
	// TopP keeps the smallest set of tokens whose probability reaches it; 0 or 1 keeps all.
	TopP float32
	// MinP drops tokens less probable than MinP times the most probable one; 0 keeps all.
	MinP float32
	// TopK keeps the K most probable tokens; 0 keeps all.
	TopK int32
}

// SamplingSize is the bytes of a Sampling.
const SamplingSize = 40

// Sample draws a token for each row of logits [R, V] float32. requests is [R] of
// Sampling. token [R] int32 is -1 for a row with a NaN or no finite maximum.
// logprob [R] is under the softmax of the logits as they are, sampled [R] under
// the distribution that was drawn from.
func Sample(m Machine, logits, requests Pointer, rows, vocab int, token, logprob, sampled Pointer) error {
	check("Sample", rows > 0 && vocab > 0 && vocab <= 1<<19, "%d rows of a vocabulary of %d; at most %d", rows, vocab, 1<<19)
	return m.Launch(Launch{
		Kernel: "sample_f32", Grid: [3]int{rows, 1, 1}, Threads: 256,
		Args: []Arg{ptr(logits), ptr(requests), i32(vocab), ptr(token), ptr(logprob), ptr(sampled)},
	})
}
