// Package rollout plays episodes: a policy acts in an environment turn by turn,
// and what happened is recorded as an append-only list of token ids. Training
// sees exactly these ids; nothing is tokenised twice.
package rollout

import (
	"context"

	"github.com/ssr-go/ssr/model/gen"
)

// Policy is all that an episode needs of a language model. An implementation
// that keeps a KV cache between turns may also implement Releaser.
type Policy interface {
	Generate(ctx context.Context, req gen.Request) (gen.Completion, error)
}

// Releaser is implemented by policies that keep state (a KV cache) per
// trajectory; Release is called once when the trajectory has ended.
type Releaser interface {
	Release(id string)
}

// Role is the part the policy plays. Advantages never mix roles.
type Role string

const (
	Injector Role = "injector"
	Solver   Role = "solver"
)

// Status says how an episode reached the sink. Every episode that was started
// reaches it exactly once.
type Status string

const (
	// Scored episodes have a reward and enter the loss.
	Scored Status = "scored"
	// Failed episodes were lost to infrastructure after all retries; they are
	// masked out of the loss and counted by Failure.
	Failed Status = "failed"
	// Cancelled episodes were stopped by the caller.
	Cancelled Status = "cancelled"
)

// Trajectory is one episode. Tokens, Trained, Logprobs and Versions are
// parallel: entry i describes token i.
type Trajectory struct {
	ID    string `json:"id"`
	Group string `json:"group"`
	Role  Role   `json:"role"`
	// Step is the training step the episode was started for.
	Step int `json:"step"`

	Tokens []int32 `json:"tokens"`
	// Trained is true for tokens the policy sampled, false for prompt and observations.
	Trained []bool `json:"trained"`
	// Logprobs are the sampling-time natural logs (policy's own distribution); 0 where not Trained.
	Logprobs []float32 `json:"logprobs"`
	// Versions are the policy versions that sampled each token; -1 where not Trained.
	Versions []int64 `json:"versions"`

	// Messages are what the first prompt was rendered from.
	Messages []Message `json:"messages,omitempty"`
	Turns    []Turn    `json:"turns"`
	Status   Status    `json:"status"`
	// Reward is meaningful only when Status is Scored.
	Reward float64 `json:"reward"`
	// Outcome is a short machine-readable word for how the episode ended, for
	// instance "solved", "unsolved", "valid", "refused:bug", "no_submit", "context".
	Outcome string `json:"outcome"`
	// Failure names the infrastructure failure when Status is Failed.
	Failure string `json:"failure,omitempty"`
	// Detail is free-form data of the environment, such as a validation report.
	Detail any `json:"detail,omitempty"`
}

// Turn is the readable side of one exchange.
type Turn struct {
	// Start and End bound the sampled tokens of this turn in Trajectory.Tokens.
	Start int `json:"start"`
	End   int `json:"end"`
	// Text is what the policy wrote; Tool is the tool it called ("" when malformed).
	Text string `json:"text"`
	Tool string `json:"tool"`
	// Observation is the feedback as text, after truncation and normalisation.
	Observation string  `json:"observation"`
	Seconds     float64 `json:"seconds"`
}

// Append adds ids to the history. logprobs and versions are nil for tokens the
// policy did not sample.
func (t *Trajectory) Append(ids []int32, logprobs []float32, versions []int64) {
	for i, id := range ids {
		t.Tokens = append(t.Tokens, id)
		if logprobs == nil {
			t.Trained = append(t.Trained, false)
			t.Logprobs = append(t.Logprobs, 0)
			t.Versions = append(t.Versions, -1)
			continue
		}
		t.Trained = append(t.Trained, true)
		t.Logprobs = append(t.Logprobs, logprobs[i])
		t.Versions = append(t.Versions, versions[i])
	}
}

// Group is a set of trajectories that share a task; advantages are computed
// within it.
type Group struct {
	ID           string        `json:"id"`
	Role         Role          `json:"role"`
	Trajectories []*Trajectory `json:"trajectories"`
}

// HasSpread says whether the rewards of the scored trajectories differ: a group
// without spread teaches nothing where its own mean is the baseline.
func (g *Group) HasSpread() bool {
	var first *Trajectory
	for _, t := range g.Trajectories {
		switch {
		case t.Status != Scored:
		case first == nil:
			first = t
		case t.Reward != first.Reward:
			return true
		}
	}
	return false
}
