package token

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/model/token/jinja"
)

const (
	imStart   = "<|im_start|>"
	imEnd     = "<|im_end|>"
	endOfText = "<|endoftext|>"
)

// chatMLTemplate is the template of tokenizers that are trained here, and of
// those that have ChatML's tokens and no template.
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

// Chat frames messages as ids, as the tokenizer's chat template frames them. It
// only ever appends: ids that were sampled or shown stay as they are, where a
// template may rewrite what was said before (Qwen3's drops earlier thoughts).
// Special tokens come from the template alone: contents are ordinary text, and
// so they cannot open or close a turn.
type Chat struct {
	t         *Tokenizer
	template  *Template
	variables map[string]any
	// opening is what stands before the first message: of a user, or of the system
	// with between before the user's, which is "" for a template without a place for
	// a system message.
	openUser, openSystem, between string
	// The frames of later messages.
	user, assistant, system frame
	// prompt opens the assistant's turn.
	prompt string
	// trim: the template takes white space off both ends of contents.
	trim bool
	end  int32
	stop []int32
}

// frame is what a template writes around a message.
type frame struct{ before, after string }

// ChatOptions are what a chat's template is told beside the messages.
type ChatOptions struct {
	// Tools is a JSON list of tool definitions, or nil.
	Tools json.RawMessage
	// Variables are as Conversation.Options.
	Variables map[string]any
}

// NewChat returns the chat of a tokenizer: that of its chat template, or ChatML
// where it has none and ChatML's special tokens.
func NewChat(t *Tokenizer) (*Chat, error) { return NewChatWith(t, ChatOptions{}) }

// NewChatWith is NewChat with options.
func NewChatWith(t *Tokenizer, o ChatOptions) (*Chat, error) {
	config, err := t.config()
	if err != nil {
		return nil, err
	}
	if config.template == "" {
		for _, s := range []string{imStart, imEnd} {
			if _, ok := t.ID(s); !ok {
				return nil, fmt.Errorf("token: the tokenizer has no chat template, and lacks %s for ChatML", s)
			}
		}
		config.template = chatMLTemplate
	}
	template, err := ParseTemplate(config.template, config.tokens)
	if err != nil {
		return nil, err
	}
	c := &Chat{t: t, template: template, variables: o.Variables}
	if err := c.probe(template, o); err != nil {
		return nil, fmt.Errorf("token: chat template: %w", err)
	}
	start, _, id := t.findAdded(c.assistant.after)
	if id < 0 || start != 0 {
		return nil, fmt.Errorf("token: the chat template ends an assistant's turn with %q, which does not begin with a special token", c.assistant.after)
	}
	c.end, c.stop = id, []int32{id}
	for _, s := range []string{config.tokens["eos_token"], endOfText, "<|end_of_text|>", "<|eom_id|>"} {
		if id, ok := t.ID(s); ok && !slices.Contains(c.stop, id) {
			c.stop = append(c.stop, id)
		}
	}
	return c, nil
}

// Contents that a template is probed with.
const (
	question = "(first question)"
	answer   = "(an answer)"
	again    = "(second question)"
	rules    = "(rules)"
)

// probe finds the frames by rendering short chats, and checks that they explain
// what the template makes of others.
func (c *Chat) probe(t *Template, o ChatOptions) error {
	render := func(prompt bool, messages ...Message) (string, error) {
		data, err := json.Marshal(messages)
		if err != nil {
			return "", err
		}
		return t.Render(Conversation{Messages: data, Tools: o.Tools, Prompt: prompt, Options: o.Variables})
	}
	// cut renders a chat and returns what stands around its contents.
	cut := func(messages ...Message) ([]string, error) {
		text, err := render(false, messages...)
		if err != nil {
			return nil, err
		}
		var parts []string
		for _, m := range messages {
			before, after, ok := strings.Cut(text, m.Content)
			if !ok {
				return nil, fmt.Errorf("the message %q of the %s is not in the text in its place", m.Content, m.Role)
			}
			parts = append(parts, before)
			text = after
		}
		return append(parts, text), nil
	}
	ask, say, ask2, rule := Message{User, question}, Message{Assistant, answer}, Message{User, again}, Message{System, rules}

	one, err := cut(ask)
	if err != nil {
		return err
	}
	two, err := cut(ask, say)
	if err != nil {
		return err
	}
	three, err := cut(ask, say, ask2)
	if err != nil {
		return err
	}
	prompted, err := render(true, ask)
	if err != nil {
		return err
	}
	spaced, err := render(false, Message{User, "\n " + question + " \n"})
	if err != nil {
		return err
	}
	var okA, okU, okP bool
	c.openUser, c.user.after, c.assistant.after = one[0], one[1], two[2]
	c.assistant.before, okA = strings.CutPrefix(three[1], c.user.after)
	c.user.before, okU = strings.CutPrefix(three[2], c.assistant.after)
	c.prompt, okP = strings.CutPrefix(prompted, one[0]+question+one[1])
	c.trim = !strings.Contains(spaced, "\n "+question+" \n")
	c.system = c.user
	if !okA || !okU || !okP || three[3] != c.user.after {
		return fmt.Errorf("it does not write turns one after the other: %q, then %q", prompted, three)
	}
	if later, err := cut(ask, say, rule, ask2); err == nil {
		before, ok1 := strings.CutPrefix(later[2], c.assistant.after)
		after, ok2 := strings.CutSuffix(later[3], c.user.before)
		if ok1 && ok2 {
			c.system = frame{before, after}
		}
	}
	if first, err := cut(rule, ask); err == nil && first[2] == c.user.after {
		c.openSystem, c.between = first[0], first[1]
	}
	for _, chat := range [][]Message{{ask}, {ask, say, ask2}, {ask, say, ask2, {Assistant, "(b)"}, {User, "(c)"}}} {
		want, err := render(true, chat...)
		if err != nil {
			return err
		}
		if got := c.text(chat, ""); got != want {
			return fmt.Errorf("it writes %q where its parts make %q", want, got)
		}
	}
	return nil
}

// text frames messages and opens the assistant's turn. Added tokens that contents
// spell are interrupted by mark.
func (c *Chat) text(messages []Message, mark string) string {
	var b strings.Builder
	content := func(s string) string { return c.content(s, mark) }
	if len(messages) > 1 && messages[0].Role == System && messages[1].Role == User {
		system, user := messages[0].Content, messages[1].Content
		if c.between == "" { // the template has no place for it
			b.WriteString(c.openUser + content(system+"\n\n"+user))
		} else {
			b.WriteString(c.openSystem + content(system) + c.between + content(user))
		}
		b.WriteString(c.user.after)
		messages = messages[2:]
	} else if len(messages) > 0 && messages[0].Role == User {
		b.WriteString(c.openUser + content(messages[0].Content) + c.user.after)
		messages = messages[1:]
	} else {
		b.WriteString(strings.TrimSuffix(c.openUser, c.user.before))
	}
	for _, m := range messages {
		f := c.user
		switch m.Role {
		case Assistant:
			f = c.assistant
		case System:
			f = c.system
		}
		b.WriteString(f.before + content(m.Content) + f.after)
	}
	return b.String() + c.prompt
}

// content is a message's content as it stands in the text.
func (c *Chat) content(s, mark string) string {
	if c.trim {
		s = strings.TrimFunc(s, jinja.IsSpace)
	}
	return c.mark(s, mark)
}

// mark interrupts the added tokens that a text spells by mark, if that is not "".
func (c *Chat) mark(s, mark string) string {
	if mark == "" {
		return s
	}
	var b strings.Builder
	for {
		start, end, id := c.t.findAdded(s)
		if id < 0 {
			return b.String() + s
		}
		spelled := c.t.text[id]
		at := start + strings.Index(s[start:end], spelled) + 1 // lstrip may have moved start
		b.WriteString(s[:at] + mark)
		s = s[at:]
	}
}

// encode is what text gives the contents of; first says that nothing precedes it.
func (c *Chat) encode(write func(mark string) string, contents []string, first bool) []int32 {
	mark := unusedMark(contents)
	return c.t.encodeMarked(write(mark), mark, first)
}

// unusedMark is text that is in none of the texts, and that nothing which is
// valid UTF-8 can become part of.
func unusedMark(texts []string) string {
	mark := "\xff"
	for slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, mark) }) {
		mark += "\xff"
	}
	return mark
}

// Tokenizer returns the tokenizer the chat was made for.
func (c *Chat) Tokenizer() *Tokenizer { return c.t }

// Prompt frames messages and opens the assistant's turn. A system message has its
// place at the beginning, before a user's; where the template has none for it, it
// is written into the user's message.
func (c *Chat) Prompt(messages []Message) []int32 {
	contents := make([]string, len(messages))
	for i, m := range messages {
		contents[i] = m.Content
	}
	return c.encode(func(mark string) string { return c.text(messages, mark) }, contents, true)
}

// Observation is what to append after a completion: the end of the assistant's
// turn unless it is closed already, text as the user's turn, and the opening of
// the next assistant turn. See [Chat.Closed].
func (c *Chat) Observation(text string, closed bool) []int32 {
	return c.encode(func(mark string) string {
		after := c.assistant.after
		if closed {
			after = strings.TrimPrefix(after, c.t.text[c.end])
		}
		return after + c.user.before + c.content(text, mark) + c.user.after + c.prompt
	}, []string{text}, false)
}

// Reply is an assistant's whole turn as a policy would sample it after Prompt
// or Observation: the text and the end token.
func (c *Chat) Reply(text string) []int32 {
	return append(c.t.appendEncode(nil, text, false), c.end)
}

// Closed reports whether a completion ended its turn itself.
func (c *Chat) Closed(completion []int32) bool {
	return len(completion) > 0 && completion[len(completion)-1] == c.end
}

// Text decodes a completion without the token that ended it.
func (c *Chat) Text(completion []int32) string {
	if n := len(completion); n > 0 && slices.Contains(c.stop, completion[n-1]) {
		return c.t.Decode(completion[:n-1])
	}
	return c.t.Decode(completion)
}

// StopTokens are the ids that end an assistant's turn, the proper one first.
func (c *Chat) StopTokens() []int32 { return slices.Clone(c.stop) }
