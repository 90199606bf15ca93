// Package gen holds the records that pass between the generation engine and
// everyone else. It is pure data: no tensors, no clocks, no goroutines.
package gen

// FinishReason says why a completion ended.
type FinishReason string

const (
	// FinishStop: a stop token or a stop string was produced; it is part of Tokens.
	FinishStop FinishReason = "stop"
	// FinishLength: MaxTokens, or the policy's context window, was reached.
	FinishLength FinishReason = "length"
	// FinishCancelled: the caller's context ended first.
	FinishCancelled FinishReason = "cancelled"
)

// Sampling shapes the distribution tokens are drawn from. The order is
// temperature, then top-k, then top-p, then min-p.
type Sampling struct {
	// Temperature divides the logits; 0 means greedy (argmax, lowest id on a tie).
	Temperature float64
	// TopP keeps the smallest set of tokens whose probability reaches it; 0 or 1 keeps all.
	TopP float64
	// TopK keeps the K most probable tokens; 0 keeps all.
	TopK int
	// MinP keeps the tokens whose probability is at least this share of the most
	// probable one's; 0 keeps all.
	MinP float64
}

// Request asks for one continuation of a token history.
type Request struct {
	// ID names the trajectory. With Seed and the absolute position of a token it
	// determines every random draw, and it names the KV cache kept between turns:
	// a later request with the same ID whose Tokens extend the earlier history
	// prefills only what is new.
	ID string
	// Seed is the run's seed.
	Seed uint64
	// Tokens is the whole history so far, prompt and observations included.
	Tokens []int32
	// MaxTokens bounds the number of new tokens (> 0).
	MaxTokens int
	Sampling  Sampling
	// StopTokens end the completion when sampled. The stop token is kept.
	StopTokens []int32
	// StopStrings end the completion when the decoded new text contains one.
	// The token that completes the string is kept.
	StopStrings []string
	// Alternatives is how many of the most probable tokens to tell beside each
	// sampled one.
	Alternatives int
}

// Alternative is a token that could have been sampled.
type Alternative struct {
	Token int32
	// Logprob is as in Completion.Logprobs.
	Logprob float32
}

// Completion is what a policy sampled. All slices have one entry per new token.
type Completion struct {
	Tokens []int32
	// Logprobs are natural logs under the policy's own distribution
	// (temperature 1, nothing truncated): what training recomputes.
	Logprobs []float32
	// SamplingLogprobs are natural logs under the distribution actually drawn from.
	SamplingLogprobs []float32
	// Versions is the policy version that produced each token.
	Versions []int64
	// CacheVersions is the oldest version that computed a part of the keys and values
	// that each token was sampled over; nil where that is always Versions.
	CacheVersions []int64
	// Alternatives are the most probable tokens in each one's place, best first, lowest
	// id first among equals; nil where none were asked for.
	Alternatives [][]Alternative
	Finish       FinishReason
}
