package cuda

// Sampling is how one row is sampled, in the layout that the kernel reads. The
// order is temperature, top-k, top-p, min-p.
type Sampling struct {
	// Draw is uniform in [0, 2^53), see Uniform.
	Draw uint64
	// Temperature divides the logits; 0 is greedy (lowest id on a tie).
	Temperature float32
	// TopP keeps the smallest set of tokens whose probability reaches it; 0 or 1 keeps all.
	TopP float32
	// MinP drops tokens less probable than MinP times the most probable one; 0 keeps all.
	MinP float32
	// TopK keeps the K most probable tokens; 0 keeps all.
	TopK int32
}

// Uniform is the Draw of a number in [0, 1) with 53 bits, as model/gen draws them.
func Uniform(u float64) uint64 { return uint64(u * (1 << 53)) }

// SamplingSize is the bytes of a Sampling.
const SamplingSize = 24

// Sample draws a token for each row of logits [R, V] float32. requests is [R] of
// Sampling. token [R] int32 is -1 for a row with a NaN or no finite maximum.
// logprob [R] is under the softmax of the logits as they are, sampled [R] under
// the distribution that was drawn from.
func Sample(m Machine, logits, requests Pointer, rows, vocab int, token, logprob, sampled Pointer) error {
	check("Sample", rows > 0 && vocab > 0 && vocab <= 1<<19, "%d rows of a vocabulary of %d; at most %d", rows, vocab, 1<<19)
	return m.Launch(Launch{
		Kernel: "sample_f32", Grid: [3]int{rows, 1, 1}, Threads: softmaxThreads,
		Args: []Arg{ptr(logits), ptr(requests), i32(vocab), ptr(token), ptr(logprob), ptr(sampled)},
	})
}
