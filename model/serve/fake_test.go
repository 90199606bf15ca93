package serve_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/serve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// endToken is the one token that is not a byte.
const endToken = 256

// byteTokens is a tokenizer whose ids are bytes.
type byteTokens struct{}

func (byteTokens) VocabSize() int { return endToken + 1 }

func (byteTokens) EncodeSpecial(text string) []int32 {
	var ids []int32
	for _, b := range []byte(text) {
		ids = append(ids, int32(b))
	}
	return ids
}

func (byteTokens) AppendDecode(dst []byte, ids ...int32) []byte {
	for _, id := range ids {
		dst = append(dst, byte(id)) // the end and what follows it are never shown
	}
	return dst
}

// scripted writes a text for each choice, with the log-probability -n/8 for
// its n-th token.
type scripted struct {
	script func(seed uint64, choice int) string
	// Where hang is set, generation waits until its context ends, and says so.
	hang chan struct{}

	mu       sync.Mutex
	live     map[string]int // the length of the prompt
	requests []gen.Request
}

func (s *scripted) Generate(ctx context.Context, req gen.Request) (gen.Completion, error) {
	s.mu.Lock()
	prompt, known := s.live[req.ID]
	if !known {
		prompt = len(req.Tokens)
		s.live[req.ID] = prompt
	}
	s.requests = append(s.requests, req)
	s.mu.Unlock()
	if s.hang != nil {
		s.hang <- struct{}{}
		<-ctx.Done()
		return gen.Completion{Finish: gen.FinishCancelled}, nil
	}
	choice, err := strconv.Atoi(req.ID[strings.LastIndex(req.ID, "/")+1:])
	if err != nil {
		return gen.Completion{}, err
	}
	script := append(byteTokens{}.EncodeSpecial(s.script(req.Seed, choice)), endToken)
	c := gen.Completion{Finish: gen.FinishLength}
	for at := len(req.Tokens) - prompt; at < len(script) && len(c.Tokens) < req.MaxTokens; at++ {
		c.Tokens = append(c.Tokens, script[at])
		c.Logprobs = append(c.Logprobs, -float32(at+1)/8)
		if req.Alternatives > 0 {
			c.Alternatives = append(c.Alternatives, []gen.Alternative{{Token: script[at], Logprob: -float32(at+1) / 8}, {Token: script[at] + 1, Logprob: -float32(at+1)/8 - 1}})
		}
		if script[at] == endToken {
			c.Finish = gen.FinishStop
			break
		}
	}
	return c, nil
}

func (s *scripted) Release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, id)
}

// says is a generator that always writes the same.
func says(script string) *scripted {
	return &scripted{script: func(uint64, int) string { return script }, live: map[string]int{}}
}

// lines is a chat that writes "role:content|" for each message.
type lines struct{ serve.PlainChat }

func (lines) Prompt(messages []serve.Message, _ []serve.Tool) ([]int32, error) {
	text := ""
	for _, m := range messages {
		text += m.Role + ":" + m.Content + "|"
	}
	return byteTokens{}.EncodeSpecial(text), nil
}

func (lines) StopTokens() []int32 { return []int32{endToken} }

func options() serve.Options {
	return serve.Options{Name: "tiny", Context: 1000, StopTokens: []int32{endToken}, Chat: lines{}, Deadline: time.Minute}
}

// post answers a request without a connection.
func post(t rapid.TB, s *serve.Server, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

// record is what answers of both endpoints look like, as far as tests read it.
type record struct {
	Object  string
	Choices []struct {
		Index          int
		Text           string
		Message, Delta struct {
			Role      string
			Content   string
			ToolCalls []serve.ToolCall `json:"tool_calls"`
		}
		Logprobs *struct {
			Tokens        []string
			TokenLogprobs []float64 `json:"token_logprobs"`
			TextOffset    []int     `json:"text_offset"`
			Content       []struct {
				Token   string
				Logprob float64
				Bytes   []byte `json:"-"`
			}
		}
		FinishReason string `json:"finish_reason"`
	}
	Usage *struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Total      int `json:"total_tokens"`
	}
	Error *struct{ Message, Type, Param, Code string }
}

func decode(t rapid.TB, text string) record {
	t.Helper()
	var r record
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return r
}

// events splits a stream and checks that it is complete.
func events(t rapid.TB, body string) []record {
	t.Helper()
	var all []record
	rest, ok := strings.CutSuffix(body, "data: [DONE]\n\n")
	if !ok {
		t.Fatalf("the stream does not end with [DONE]: %q", body)
	}
	for event := range strings.SplitSeq(strings.TrimSuffix(rest, "\n\n"), "\n\n") {
		all = append(all, decode(t, strings.TrimPrefix(event, "data: ")))
	}
	return all
}

// read is the whole body of an answer over a connection.
func read(t rapid.TB, r *http.Response) string {
	t.Helper()
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
