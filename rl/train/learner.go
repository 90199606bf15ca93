// Package train is the loop: it lets a game play episodes, journals what
// finished, turns it into updates of a learner, and survives being killed at
// any moment. It knows policies and games only through the interfaces here.
package train

import (
	"context"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rollout"
)

// Learner holds the weights that are trained, their gradients and the
// optimizer's state. It is used by one goroutine at a time. On equal state and
// equal calls it must give equal results, whatever its own parallelism.
type Learner interface {
	// Version counts the updates that made the weights.
	Version() int64
	// Accumulate, once for each Step, runs each micro-batch forward and backward and
	// adds up their gradients, in the order of batches. For batch i it calls fn once
	// with the log-probability of every token given those before it in its sequence
	// and the entropy, in nats, of the distribution it was drawn from (nil when it is
	// not computed), anything where Mask is false; fn answers with dLoss/dLogprobs.
	// Calls of fn may be concurrent and in any order; the slices given to it are not
	// kept. After an error, of fn's or its own, no gradient remains accumulated.
	Accumulate(ctx context.Context, batches []rl.Packed, fn GradientFunc) error
	// Step applies the accumulated gradient, clears it, and raises Version by
	// one. It returns the gradient's global norm before clipping. Where the norm
	// is not finite it clears the gradient, changes nothing else, and returns an
	// error that wraps rl.ErrNonFinite.
	Step(ctx context.Context, opt AdamW) (gradNorm float64, err error)
	// Save writes weights, optimizer state and version into an existing empty
	// folder; Load reads them back exactly.
	Save(dir string) error
	Load(dir string) error
}

// GradientFunc turns a micro-batch's log-probabilities into the gradient with
// respect to them. All three slices have one entry per token of batch i.
type GradientFunc func(i int, logprobs, entropies []float64) (gradient []float64, err error)

// Reference is implemented by learners that can score tokens under a frozen
// reference policy, which objectives need that measure the divergence from it.
type Reference interface {
	// ReferenceLogprobs returns one vector for each batch, as Accumulate would give it to fn.
	ReferenceLogprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error)
}

// Scorer is implemented by learners that can score tokens without an update,
// which several updates of one step around the policy that began it need.
type Scorer interface {
	// Logprobs returns one vector for each batch, as Accumulate would give it to fn.
	Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error)
}

// Replicated is implemented by learners that share the micro-batches of an update
// among several replicas of the policy.
type Replicated interface {
	// Replicas is their number; an update has as many micro-batches at least.
	Replicas() int
}

// AdamW are the settings of one optimizer step (decoupled weight decay).
type AdamW struct {
	LR          float64 `json:"lr" yaml:"lr"`
	Beta1       float64 `json:"beta1" yaml:"beta1"`
	Beta2       float64 `json:"beta2" yaml:"beta2"`
	Eps         float64 `json:"eps" yaml:"eps"`
	WeightDecay float64 `json:"weight_decay" yaml:"weight_decay"`
	// Clip bounds the gradient's global norm; 0 leaves it.
	Clip float64 `json:"clip" yaml:"clip"`
}

// Game plays the episodes of training steps.
type Game interface {
	// Play plays every task of a step (the first is 1). It calls finish, from any
	// goroutine, as soon as a group has finished; when finish has returned nil the
	// group is durable and will not be played again. An error of finish ends the
	// play. done holds, in the order of recording, what an interrupted attempt at
	// the same step had finished: Play neither plays nor reports these again.
	//
	// A later record of a group replaces an earlier one (their counts add up), so
	// that an injector group can be recorded when its episodes end and again when
	// its bugs' solvers have decided its rewards. Which tasks a step has must follow from
	// the game's state before the step, its configuration and the policy.
	Play(ctx context.Context, step int, done []Finished, finish func(Finished) error) error
	// State captures what the game carries from step to step, such as its pool
	// of bugs; Restore goes back to it. Both are called between steps only.
	State() ([]byte, error)
	Restore(state []byte) error
}

// Finished is a group whose episodes have all ended, and what it took.
type Finished struct {
	Group *rollout.Group `json:"group"`
	// Counts are figures to be summed over the step, such as "sandboxes".
	Counts map[string]float64 `json:"counts,omitempty"`
}
