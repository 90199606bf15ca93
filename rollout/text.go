package rollout

import (
	"context"
	"fmt"
	"sync"

	"github.com/ssr-go/ssr/model/gen"
)

// ByteChat is a Chat without a model: a token is a byte of UTF-8 text, and
// EndOfTurn closes each message. Scripted players and tests use it, so that
// they pass through the same loop as a policy.
type ByteChat struct{}

// EndOfTurn is ByteChat's only special token.
const EndOfTurn int32 = 256

func (ByteChat) Prompt(messages []Message) []int32 {
	var ids []int32
	for _, m := range messages {
		ids = append(byteIDs(ids, m.Content), EndOfTurn)
	}
	return ids
}

func (ByteChat) Observation(text string, closed bool) []int32 {
	var ids []int32
	if !closed {
		ids = append(ids, EndOfTurn)
	}
	return append(byteIDs(ids, text), EndOfTurn)
}

func (ByteChat) Text(ids []int32) string {
	b := make([]byte, 0, len(ids))
	for _, id := range ids {
		if id != EndOfTurn {
			b = append(b, byte(id))
		}
	}
	return string(b)
}

func (ByteChat) StopTokens() []int32 { return []int32{EndOfTurn} }

func byteIDs(ids []int32, s string) []int32 {
	for i := range len(s) {
		ids = append(ids, int32(s[i]))
	}
	return ids
}

// TextPlayer plays one episode as text: Turn receives what is new in the
// context (first the prompt, then each observation) and answers with one turn.
type TextPlayer interface {
	Turn(ctx context.Context, seen string) (string, error)
}

// TextPolicy is a Policy over ByteChat that lets a TextPlayer play each
// trajectory. Every token has log-probability 0 and version 0.
type TextPolicy struct {
	// New makes the player of one attempt at the trajectory named id.
	New func(id string) (TextPlayer, error)

	mu       sync.Mutex
	episodes map[string]*textEpisode
}

type textEpisode struct {
	player TextPlayer
	seen   int
}

func (p *TextPolicy) Generate(ctx context.Context, req gen.Request) (gen.Completion, error) {
	e, err := p.episode(req.ID)
	if err != nil {
		return gen.Completion{}, err
	}
	if e.seen > len(req.Tokens) {
		return gen.Completion{}, fmt.Errorf("history of %s shrank from %d to %d tokens", req.ID, e.seen, len(req.Tokens))
	}
	text, err := e.player.Turn(ctx, ByteChat{}.Text(req.Tokens[e.seen:]))
	if err != nil {
		return gen.Completion{}, fmt.Errorf("scripted player of %s: %w", req.ID, err)
	}
	c := gen.Completion{Tokens: append(byteIDs(nil, text), EndOfTurn), Finish: gen.FinishStop}
	if len(c.Tokens) > req.MaxTokens {
		c.Tokens, c.Finish = c.Tokens[:req.MaxTokens], gen.FinishLength
	}
	e.seen = len(req.Tokens) + len(c.Tokens)
	c.Logprobs = make([]float32, len(c.Tokens))
	c.SamplingLogprobs = make([]float32, len(c.Tokens))
	c.Versions = make([]int64, len(c.Tokens))
	return c, nil
}

func (p *TextPolicy) episode(id string) (*textEpisode, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.episodes[id]; e != nil {
		return e, nil
	}
	player, err := p.New(id)
	if err != nil {
		return nil, fmt.Errorf("make scripted player of %s: %w", id, err)
	}
	if p.episodes == nil {
		p.episodes = map[string]*textEpisode{}
	}
	e := &textEpisode{player: player}
	p.episodes[id] = e
	return e, nil
}

// Release forgets the player of a trajectory.
func (p *TextPolicy) Release(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.episodes, id)
}

// Replier is a Chat that can also render a turn that was not sampled.
type Replier interface {
	Chat
	// Reply is a whole turn of the policy, with the stop token that ends it.
	Reply(text string) []int32
}

// Replay renders an episode that was recorded as text (its Messages and Turns)
// with another chat: the ids, and which of them the policy would have sampled.
func Replay(chat Replier, t *Trajectory) (ids []int32, sampled []bool) {
	add := func(part []int32, own bool) {
		ids = append(ids, part...)
		for range part {
			sampled = append(sampled, own)
		}
	}
	add(chat.Prompt(t.Messages), false)
	for i, turn := range t.Turns {
		add(chat.Reply(turn.Text), true)
		if i+1 < len(t.Turns) {
			add(chat.Observation(turn.Observation, true), false)
		}
	}
	return ids, sampled
}

func (ByteChat) Reply(text string) []int32 { return append(byteIDs(nil, text), EndOfTurn) }
