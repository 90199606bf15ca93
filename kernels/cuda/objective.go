package cuda

// Clip are the constants of a clipped surrogate (arXiv 1707.06347, 2503.14476).
type Clip struct {
	// Low and High bound the ratio to [1-Low, 1+High].
	Low, High float64
	// Truncate bounds the importance of trainer against sampler, exp(old -
	// behaviour), that multiplies a token's loss; 0 leaves it out.
	Truncate float64
	// Scale multiplies every token's loss, for instance one over their number.
	Scale float64
}

// ObjectiveScratch is the bytes that Objective needs for n tokens.
func ObjectiveScratch(n int) int { return ceil(n, maxThreads) * 32 }

// Objective computes, for n tokens, the gradient [n] of the loss with respect to
// logprob [n], and totals [4] float64: the loss, Σ ratio - 1 - log ratio, how many
// tokens were clipped, and how many counted. old are log-probabilities of the
// policy that began the step, behaviour those at sampling; mask is [n] bytes.
func Objective(m Machine, c Clip, logprob, old, behaviour, advantage, mask Pointer, n int, gradient, scratch, totals Pointer) error {
	check("Objective", n > 0, "%d tokens", n)
	blocks := ceil(n, maxThreads)
	err := m.Launch(Launch{
		Kernel: "objective_f32", Grid: [3]int{blocks, 1, 1}, Threads: maxThreads,
		Args: []Arg{
			ptr(logprob), ptr(old), ptr(behaviour), ptr(advantage), ptr(mask), i32(n),
			f32(c.Low), f32(c.High), f32(c.Truncate), f32(c.Scale), ptr(gradient), ptr(scratch),
		},
	})
	if err != nil {
		return err
	}
	return m.Launch(Launch{
		Kernel: "objective_sum", Grid: [3]int{1, 1, 1}, Threads: 32, Args: []Arg{ptr(scratch), i32(blocks), ptr(totals)},
	})
}
