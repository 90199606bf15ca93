package token

import "fmt"

const (
	imStart   = "<|im_start|>"
	imEnd     = "<|im_end|>"
	endOfText = "<|endoftext|>"
)

// chatMLTemplate lets other tools frame chats as Chat does.
const chatMLTemplate = `{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}`

// Roles of messages.
const (
	System    = "system"
	User      = "user"
	Assistant = "assistant"
)

// Message is one turn of a chat.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Chat frames messages as ids, in ChatML:
//
//	<|im_start|>role
//	content<|im_end|>
//
// It only ever appends: ids that were sampled or shown stay as they are, and
// contents are encoded as ordinary text, so they cannot open or close a turn.
type Chat struct {
	t          *Tokenizer
	start, end int32
	newline    []int32
	stop       []int32
}

// NewChat returns the chat of a tokenizer that has ChatML's special tokens.
func NewChat(t *Tokenizer) (*Chat, error) {
	start, okStart := t.ID(imStart)
	end, okEnd := t.ID(imEnd)
	if !okStart || !okEnd {
		return nil, fmt.Errorf("token: the tokenizer lacks %s or %s: only ChatML chats are supported", imStart, imEnd)
	}
	c := &Chat{t: t, start: start, end: end, newline: t.Encode("\n"), stop: []int32{end}}
	if id, ok := t.ID(endOfText); ok {
		c.stop = append(c.stop, id)
	}
	return c, nil
}

// Tokenizer returns the tokenizer the chat was made for.
func (c *Chat) Tokenizer() *Tokenizer { return c.t }

// Prompt frames messages and opens the assistant's turn.
func (c *Chat) Prompt(messages []Message) []int32 {
	var ids []int32
	for _, m := range messages {
		ids = c.message(ids, m)
	}
	return c.open(ids)
}

// Observation is what to append after a completion: the end of the assistant's
// turn unless it is closed already, text as the user's turn, and the opening of
// the next assistant turn. See [Chat.Closed].
func (c *Chat) Observation(text string, closed bool) []int32 {
	var ids []int32
	if !closed {
		ids = append(ids, c.end)
	}
	ids = append(ids, c.newline...)
	return c.open(c.message(ids, Message{User, text}))
}

// Reply is an assistant's whole turn as a policy would sample it after Prompt
// or Observation: the text and the end token.
func (c *Chat) Reply(text string) []int32 { return append(c.t.Encode(text), c.end) }

// Closed reports whether a completion ended its turn itself.
func (c *Chat) Closed(completion []int32) bool {
	return len(completion) > 0 && completion[len(completion)-1] == c.end
}

// Text decodes a completion without the token that ended it.
func (c *Chat) Text(completion []int32) string {
	if n := len(completion); n > 0 {
		for _, id := range c.stop {
			if completion[n-1] == id {
				return c.t.Decode(completion[:n-1])
			}
		}
	}
	return c.t.Decode(completion)
}

// StopTokens are the ids that end an assistant's turn, the proper one first.
func (c *Chat) StopTokens() []int32 { return append([]int32(nil), c.stop...) }

func (c *Chat) message(ids []int32, m Message) []int32 {
	ids = append(ids, c.start)
	ids = c.t.appendEncode(ids, m.Role+"\n"+m.Content, false)
	ids = append(ids, c.end)
	return append(ids, c.newline...)
}

func (c *Chat) open(ids []int32) []int32 {
	return c.t.appendEncode(append(ids, c.start), Assistant+"\n", false)
}
