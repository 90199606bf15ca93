package rollout

import (
	"context"

	"github.com/ssr-go/ssr/model/token"
)

// Message is one entry of a chat before it is rendered to token ids.
type Message = token.Message

// Env is one episode's world. Its methods are called by one goroutine at a
// time, in the order Start, Step…, Close. What the policy does wrong is an
// observation; an error means that the world itself broke. An error that wraps
// sandbox.ErrInfrastructure is retried in a fresh Env, any other is not.
type Env interface {
	// Start prepares the world and returns the messages of the first prompt.
	Start(ctx context.Context) ([]Message, error)
	// Step carries out what the policy wrote in one turn.
	Step(ctx context.Context, action Action) (Feedback, error)
	// Close frees what Start took. It is called exactly once, also after errors.
	Close() error
}

// Action is one turn as the policy wrote it.
type Action struct {
	// Text is the decoded turn without the stop token.
	Text string
	// Truncated is true when the per-turn token limit cut it off.
	Truncated bool
	// TurnsLeft and TokensLeft are what remains of the budgets after this turn,
	// before the observation is counted.
	TurnsLeft, TokensLeft int
}

// Feedback is the world's answer to an action.
type Feedback struct {
	// Text is the observation shown to the policy. It is not shown when Done.
	Text string
	// Tool is the name of the tool that was called, "" when the call was malformed.
	Tool string
	// Done ends the episode with Outcome.
	Done    bool
	Outcome string
}

// Chat renders messages to ids and sampled ids to text for one model. It is
// stateless and safe for concurrent use.
type Chat interface {
	// Prompt renders the first messages and opens the assistant's turn.
	Prompt(messages []Message) []int32
	// Observation renders feedback as the next message and opens the assistant's
	// next turn. closed says whether the sampled turn already ended with a stop
	// token; where it did not, the closing tokens are part of what is returned.
	// Text is never turned into special tokens.
	Observation(text string, closed bool) []int32
	// Text decodes a sampled turn without the stop token that ended it.
	Text(ids []int32) string
	// StopTokens end a turn.
	StopTokens() []int32
}

// Outcomes that the episode loop itself decides on; an Env adds its own.
const (
	// OutcomeTurns: the turn limit was reached.
	OutcomeTurns = "turns"
	// OutcomeContext: the next observation or turn did not fit the context.
	OutcomeContext = "context"
)
