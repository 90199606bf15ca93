package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/ssr-go/ssr/model/gen"
)

// Limits bound one episode. Zero values mean the defaults of the code world
// model's scaffold.
type Limits struct {
	// Turns is the most turns the policy may take (default 128).
	Turns int `json:"turns" yaml:"turns"`
	// Context is the most tokens a trajectory may have, prompt, sampled and
	// observed together (default 131,072).
	Context int `json:"context" yaml:"context"`
	// TurnTokens is the most tokens sampled in one turn (default: what is left of Context).
	TurnTokens int `json:"turn_tokens" yaml:"turn_tokens"`
	// ObservationTokens is the most tokens of one observation; a longer one
	// loses its middle (default 32,768).
	ObservationTokens int `json:"observation_tokens" yaml:"observation_tokens"`
}

func (l Limits) withDefaults() Limits {
	if l.Turns <= 0 {
		l.Turns = 128
	}
	if l.Context <= 0 {
		l.Context = 131072
	}
	if l.TurnTokens <= 0 {
		l.TurnTokens = l.Context
	}
	if l.ObservationTokens <= 0 {
		l.ObservationTokens = 32768
	}
	return l
}

// Player plays whole episodes with one policy.
type Player struct {
	Policy Policy
	Chat   Chat
	Limits Limits
	// Sampling for training has Temperature 1: the zero value is greedy, so that all
	// attempts at a task are alike and teach nothing.
	Sampling gen.Sampling
	// Seed is the run's seed; with a trajectory's id and a token's position it
	// fixes every draw.
	Seed uint64
	// StopStrings end a turn beside the chat's stop tokens.
	StopStrings []string
}

// stageError says which part of an episode failed.
type stageError struct {
	kind string // FailPolicy, FailSandbox, …
	err  error
}

func (e *stageError) Error() string { return e.kind + ": " + e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// Play runs env to its end and fills t's tokens, turns and outcome. t.ID must
// be set. It neither closes env nor releases the policy's state. On an error t
// holds what had happened until then.
func (p *Player) Play(ctx context.Context, env Env, t *Trajectory) error {
	lim := p.Limits.withDefaults()
	messages, err := env.Start(ctx)
	if err != nil {
		return &stageError{FailEnvironment, fmt.Errorf("start episode %s: %w", t.ID, err)}
	}
	t.Messages = messages
	t.Append(p.Chat.Prompt(messages), nil, nil)
	stops := p.Chat.StopTokens()

	for turn := 0; ; turn++ {
		if turn == lim.Turns {
			t.Outcome = OutcomeTurns
			return nil
		}
		room := lim.Context - len(t.Tokens)
		if room <= 0 {
			t.Outcome = OutcomeContext
			return nil
		}
		begin := time.Now()
		c, err := p.Policy.Generate(ctx, gen.Request{
			ID: t.ID, Seed: p.Seed,
			Tokens:    slices.Clip(t.Tokens),
			MaxTokens: min(room, lim.TurnTokens),
			Sampling:  p.Sampling, StopTokens: stops, StopStrings: p.StopStrings,
		})
		if err == nil {
			err = checkCompletion(c, min(room, lim.TurnTokens))
		}
		if err == nil && c.Finish == gen.FinishCancelled {
			if err = context.Cause(ctx); err == nil {
				err = errors.New("generation was cancelled by the policy")
			}
		}
		if err != nil {
			return &stageError{FailPolicy, fmt.Errorf("turn %d of %s: %w", turn+1, t.ID, err)}
		}

		start := len(t.Tokens)
		t.Append(c.Tokens, c.Logprobs, c.Versions)
		text := p.Chat.Text(c.Tokens)
		rec := Turn{Start: start, End: len(t.Tokens), Text: text}
		left := lim.Context - len(t.Tokens)
		if c.Finish == gen.FinishLength && left <= 0 {
			// The context cut the turn: what it would have said is unknown.
			rec.Seconds = time.Since(begin).Seconds()
			t.Turns = append(t.Turns, rec)
			t.Outcome = OutcomeContext
			return nil
		}

		fb, err := env.Step(ctx, Action{
			Text: text, Truncated: c.Finish == gen.FinishLength,
			TurnsLeft: lim.Turns - turn - 1, TokensLeft: left,
		})
		if err != nil {
			t.Turns = append(t.Turns, rec)
			return &stageError{FailEnvironment, fmt.Errorf("turn %d of %s: %w", turn+1, t.ID, err)}
		}
		rec.Tool, rec.Observation = fb.Tool, fb.Text
		if fb.Done {
			rec.Seconds = time.Since(begin).Seconds()
			t.Turns = append(t.Turns, rec)
			t.Outcome = fb.Outcome
			return nil
		}
		closed := len(c.Tokens) > 0 && slices.Contains(stops, c.Tokens[len(c.Tokens)-1])
		obs, shown := p.observation(fb.Text, closed, lim.ObservationTokens)
		rec.Observation = shown
		rec.Seconds = time.Since(begin).Seconds()
		t.Turns = append(t.Turns, rec)
		if len(obs) >= left {
			t.Outcome = OutcomeContext
			return nil
		}
		t.Append(obs, nil, nil)
	}
}

// observation renders text within limit tokens, cutting its middle out when it
// is longer, and returns the text that was rendered.
func (p *Player) observation(text string, closed bool, limit int) ([]int32, string) {
	shown := text
	ids := p.Chat.Observation(shown, closed)
	for keep := len(text); len(ids) > limit && keep > 0; {
		// Aim a little below the limit: tokens are not spread evenly.
		keep = min(keep*limit/len(ids)*15/16, keep-1)
		shown = Elide(text, keep)
		ids = p.Chat.Observation(shown, closed)
	}
	return ids, shown
}

// Elide cuts the middle out of s so that about limit bytes of it remain, whole
// runes, and says in its place how many bytes are missing.
func Elide(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	limit = max(limit, 0)
	head, tail := limit/2, len(s)-(limit-limit/2)
	for head > 0 && !utf8.RuneStart(s[head]) {
		head--
	}
	for tail < len(s) && !utf8.RuneStart(s[tail]) {
		tail++
	}
	return s[:head] + fmt.Sprintf("\n[… %d bytes cut …]\n", tail-head) + s[tail:]
}

// checkCompletion holds a policy to the contract of gen.Completion.
func checkCompletion(c gen.Completion, most int) error {
	n := len(c.Tokens)
	switch {
	case len(c.Logprobs) != n || len(c.Versions) != n:
		return fmt.Errorf("completion has %d tokens, %d logprobs and %d versions; they must be equally many", n, len(c.Logprobs), len(c.Versions))
	case n > most:
		return fmt.Errorf("completion has %d tokens, %d were asked for at most", n, most)
	case n == 0 && c.Finish != gen.FinishCancelled:
		return fmt.Errorf("completion is empty and finished with %q", c.Finish)
	}
	return nil
}
