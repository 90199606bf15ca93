package serve

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"sync"
)

// chatForm is the JSON of chat completions.
type chatForm struct{}

type chatChoice struct {
	Index    int           `json:"index"`
	Message  *reply        `json:"message,omitempty"`
	Delta    *reply        `json:"delta,omitempty"`
	Logprobs *chatLogprobs `json:"logprobs"`
	Finish   nullable      `json:"finish_reason"`
}

// reply is the assistant's message, or what a chunk adds to it.
type reply struct {
	Role string `json:"role,omitempty"`
	// Content is null in a message that only calls tools, and absent from a chunk
	// without any.
	Content   json.RawMessage `json:"content,omitempty"`
	ToolCalls []ToolCall      `json:"tool_calls,omitempty"`
}

type chatLogprobs struct {
	Content []chatLogprob `json:"content"`
}

type chatLogprob struct {
	chatToken
	Top []chatToken `json:"top_logprobs"`
}

type chatToken struct {
	Token   string  `json:"token"`
	Logprob float32 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

func newChatToken(text []byte, logprob float32) chatToken {
	t := chatToken{Token: string(text), Logprob: logprob, Bytes: []int{}}
	for _, b := range text {
		t.Bytes = append(t.Bytes, int(b))
	}
	return t
}

func (chatForm) id() string { return "chatcmpl-" }

func (chatForm) object(stream bool) string {
	if stream {
		return "chat.completion.chunk"
	}
	return "chat.completion"
}

func (chatForm) whole(s *Server, j *job, index int, p part) any {
	c, m := chatMessage(s, j, index, p)
	m.Role = "assistant"
	if m.Content == nil {
		m.Content = json.RawMessage("null")
	}
	c.Message = m
	return c
}

func (chatForm) delta(s *Server, j *job, index int, first bool, p part) any {
	c, m := chatMessage(s, j, index, p)
	if first {
		m.Role = "assistant"
	}
	for i := range m.ToolCalls {
		m.ToolCalls[i].Index = &i
	}
	c.Delta = m
	return c
}

func chatMessage(s *Server, j *job, index int, p part) (chatChoice, *reply) {
	c := chatChoice{Index: index, Finish: nullable(p.finish)}
	content, m := p.text, &reply{}
	if len(j.tools) > 0 {
		var calls []FunctionCall
		content, calls = s.opts.Chat.Parse(p.text, j.tools)
		for _, f := range calls {
			m.ToolCalls = append(m.ToolCalls, ToolCall{ID: "call_" + rand.Text(), Type: "function", Function: f})
			c.Finish = "tool_calls"
		}
	}
	if content != "" || p.finish != "" && len(m.ToolCalls) == 0 && !j.stream {
		m.Content = encode(content)
	}
	if j.logprobs {
		c.Logprobs = &chatLogprobs{Content: []chatLogprob{}}
		for _, t := range p.tokens {
			one := chatLogprob{newChatToken(t.bytes, t.logprob), []chatToken{}}
			for _, a := range t.top {
				one.Top = append(one.Top, newChatToken(a.bytes, a.logprob))
			}
			c.Logprobs.Content = append(c.Logprobs.Content, one)
		}
	}
	return c, m
}

// textForm is the JSON of completions.
type textForm struct{}

type textChoice struct {
	Index    int           `json:"index"`
	Text     string        `json:"text"`
	Logprobs *textLogprobs `json:"logprobs"`
	Finish   nullable      `json:"finish_reason"`
}

type textLogprobs struct {
	Tokens []string `json:"tokens"`
	// TokenLogprobs has null for a token that nothing precedes.
	TokenLogprobs []*float32 `json:"token_logprobs"`
	// TopLogprobs is null where none were asked for.
	TopLogprobs []map[string]float32 `json:"top_logprobs"`
	// TextOffset counts characters from the start of the answer.
	TextOffset []int `json:"text_offset"`
}

func (textForm) id() string         { return "cmpl-" }
func (textForm) object(bool) string { return "text_completion" }

func (f textForm) delta(s *Server, j *job, index int, _ bool, p part) any {
	return f.whole(s, j, index, p)
}

func (textForm) whole(_ *Server, j *job, index int, p part) any {
	c := textChoice{Index: index, Text: p.text, Finish: nullable(p.finish)}
	if j.logprobs {
		c.Logprobs = &textLogprobs{Tokens: []string{}, TokenLogprobs: []*float32{}, TextOffset: []int{}}
		for _, t := range p.tokens {
			c.Logprobs.Tokens = append(c.Logprobs.Tokens, string(t.bytes))
			logprob := &t.logprob
			if t.unscored {
				logprob = nil
			}
			c.Logprobs.TokenLogprobs = append(c.Logprobs.TokenLogprobs, logprob)
			if j.request.Alternatives > 0 {
				top := map[string]float32{}
				for _, a := range t.top {
					// Tokens that are parts of characters may read alike: the best one counts.
					if _, ok := top[string(a.bytes)]; !ok {
						top[string(a.bytes)] = a.logprob
					}
				}
				c.Logprobs.TopLogprobs = append(c.Logprobs.TopLogprobs, top)
			}
			c.Logprobs.TextOffset = append(c.Logprobs.TextOffset, t.offset)
		}
	}
	return c
}

// stream writes server-sent events, each of them JSON. It is safe for concurrent
// use. The header goes with the first event, so that a request which fails before
// has its status.
type stream struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	began bool
}

func (s *stream) send(v any) error { return s.event(bytes.TrimSpace(encode(v))) }

func (s *stream) event(data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.began {
		s.began = true
		s.w.Header().Set("Content-Type", "text/event-stream")
		s.w.Header().Set("Cache-Control", "no-cache")
	}
	if _, err := s.w.Write(append(append([]byte("data: "), data...), "\n\n"...)); err != nil {
		return err
	}
	return http.NewResponseController(s.w).Flush()
}

// fail tells err in the stream, or returns it where none has begun.
func (s *stream) fail(err error) error {
	if !s.began {
		return err
	}
	_ = s.send(errorBody{asAPIError(err)}) // nobody is left to tell when this fails
	return nil
}

// end says that the stream is complete.
func (s *stream) end() {
	_ = s.event([]byte("[DONE]")) // fails when the client has gone
}
