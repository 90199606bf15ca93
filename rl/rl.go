// Package rl turns rewards into advantages and log-probabilities into a loss
// and its gradient. It never sees a tensor: for a packed batch it receives plain
// vectors and returns the loss, dLoss/dLogprob and metrics, so a new objective
// is a few lines and is checked by finite differences without a GPU.
package rl

// Batch is one packed (micro-)batch. All per-token vectors have length N, the
// number of tokens; entry i concerns predicting token i from what precedes it
// in its sequence. The first token of a sequence is never predicted: its Mask
// entry is false.
type Batch struct {
	// Logprobs are natural logs under the policy now.
	Logprobs []float64
	// RolloutLogprobs are natural logs recorded when the token was sampled.
	RolloutLogprobs []float64
	// OldLogprobs are natural logs under the trainer's policy when the step began;
	// nil when unused (see Settings.Anchor).
	OldLogprobs []float64
	// ReferenceLogprobs are natural logs under a frozen reference; nil when unused.
	ReferenceLogprobs []float64
	// Advantages, one per token (constant over a sequence for outcome rewards).
	Advantages []float64
	// Mask is true where a token is trained on.
	Mask []bool
	// Offsets bound the sequences: sequence s is [Offsets[s], Offsets[s+1]).
	Offsets []int
	// Prompts name the prompt, that is the group, of each sequence; nil when unused.
	Prompts []string
	// Totals are counts over the whole optimizer step, of which this batch may
	// be a part, so that micro-batches add up to the loss of one big batch.
	Totals Totals
}

// Totals counts what one optimizer step trains on, over all its micro-batches.
type Totals struct {
	// Tokens is the number of masked-in tokens.
	Tokens int
	// Sequences is the number of sequences with at least one masked-in token.
	Sequences int
	// Prompts are the masked-in tokens of each prompt that has any; nil when unused.
	Prompts map[string]int
	// Idle of the Tokens are of sequences that count, but are in no batch, since they
	// change neither the loss nor a gradient. Metrics are of the others.
	Idle int
}

// Result is the value of an objective on a batch.
type Result struct {
	// Loss is to be minimised.
	Loss float64
	// Grad is dLoss/dLogprobs, length N, zero where Mask is false.
	Grad []float64
	// Metrics are sums or means named by their key, for instance "clip_fraction".
	Metrics map[string]float64
}

// Objective is a differentiable function of a batch. Implementations are safe
// for use by one goroutine at a time.
type Objective interface {
	Evaluate(b Batch) (Result, error)
}

// Selective is implemented by objectives that need not see every sequence.
type Selective interface {
	// Idle says that, whatever the policy, the sequence adds nothing to the loss, has no
	// gradient, and changes no other's.
	Idle(s Sequence) bool
}

// Referring is implemented by objectives that may read a reference policy.
type Referring interface {
	// NeedsReference says that a batch without ReferenceLogprobs is refused.
	NeedsReference() bool
}

// NeedsReference says whether o reads a reference policy's log-probabilities.
func NeedsReference(o Objective) bool {
	r, ok := o.(Referring)
	return ok && r.NeedsReference()
}

var (
	_ Selective = (*graphObjective)(nil)
	_ Referring = (*graphObjective)(nil)
)
