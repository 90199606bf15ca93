package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/rollout"
)

// server answers requests without a network.
type server func(r *http.Request, body string) (status int, answer string)

func (s server) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	status, answer := s(r, string(body))
	header := http.Header{}
	if rest, ok := strings.CutPrefix(answer, "retry "); ok {
		seconds, after, _ := strings.Cut(rest, " ")
		header.Set("Retry-After", seconds)
		answer = after
	}
	return &http.Response{
		StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)), Header: header, Request: r,
		Body: io.NopCloser(strings.NewReader(answer)),
	}, nil
}

const models = `{"object":"list","data":[{"id":"big"}]}`

// open is a policy at a server that lists its model and then answers as s does.
func open(t *testing.T, s server) *Policy {
	t.Helper()
	p, err := New(t.Context(), Options{URL: "https://host/v1/", Key: "secret", Client: &http.Client{Transport: server(func(r *http.Request, body string) (int, string) {
		if r.URL.String() == "https://host/v1/models" {
			return 200, models
		}
		return s(r, body)
	})}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func says(text, finish string) string {
	data, _ := json.Marshal(text)
	return fmt.Sprintf(`{"choices":[{"message":{"role":"assistant","content":%s},"finish_reason":%q}]}`, data, finish)
}

// A game's history reaches the server as messages, and its answer is a turn.
func TestEpisode(t *testing.T) {
	var asked []string
	answers := []string{says("First <tool: a>\nx\n</tool> and more", "stop"), says("an end", "stop"), says("cut", "length")}
	p := open(t, func(r *http.Request, body string) (int, string) {
		if got := r.Header.Get("Authorization"); r.Method+" "+r.URL.Path != "POST /v1/chat/completions" || got != "Bearer secret" {
			t.Errorf("%s %s with authorization %q", r.Method, r.URL, got)
		}
		asked = append(asked, body)
		return 200, answers[len(asked)-1]
	})
	chat := rollout.ByteChat{}
	history := chat.Prompt([]rollout.Message{{Role: "system", Content: "Be good."}, {Role: "user", Content: "Gö"}})
	turn := func() gen.Completion {
		t.Helper()
		c, err := p.Generate(t.Context(), gen.Request{
			ID: "e", Seed: 3, Tokens: history, MaxTokens: 100, Sampling: gen.Sampling{Temperature: 0.5}, StopStrings: []string{"</tool>"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(c.Tokens); len(c.Logprobs) != n || len(c.SamplingLogprobs) != n || len(c.Versions) != n {
			t.Errorf("%d tokens with %d log-probabilities", n, len(c.Logprobs))
		}
		history = append(history, c.Tokens...)
		return c
	}
	first := turn()
	if got := chat.Text(first.Tokens); got != "First <tool: a>\nx\n</tool>" || first.Finish != gen.FinishStop {
		t.Errorf("the first turn is %q, %s", got, first.Finish)
	}
	history = append(history, chat.Observation("seen", slices.Contains(first.Tokens, rollout.EndOfTurn))...)
	second := turn()
	if got := chat.Text(second.Tokens); got != "an end" || second.Tokens[len(second.Tokens)-1] != rollout.EndOfTurn || second.Finish != gen.FinishStop {
		t.Errorf("the second turn is %q, %s", got, second.Finish)
	}
	history = append(history, chat.Observation("more", true)...)
	if third := turn(); third.Finish != gen.FinishLength || chat.Text(third.Tokens) != "cut" {
		t.Errorf("the third turn is %q, %s", chat.Text(third.Tokens), third.Finish)
	}
	var got struct {
		Model       string
		Messages    []message
		Temperature float64
		TopP        float64 `json:"top_p"`
		MaxTokens   int     `json:"max_tokens"`
	}
	if err := json.Unmarshal([]byte(asked[2]), &got); err != nil {
		t.Fatal(err)
	}
	want := []message{
		{"system", "Be good."}, {"user", "Gö"}, {"assistant", "First <tool: a>\nx\n</tool>"}, {"user", "seen"}, {"assistant", "an end"}, {"user", "more"},
	}
	if diff := cmp.Diff(want, got.Messages); diff != "" || got.Model != "big" || got.Temperature != 0.5 || got.TopP != 1 || got.MaxTokens != 100 {
		t.Errorf("asked for %+v\n%s", got, diff)
	}
}

// A server that is busy is asked again, in virtual time: after one second, two, and
// as long as it wants; one that refuses is not.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var at []time.Duration
		p := open(t, func(*http.Request, string) (int, string) {
			at = append(at, time.Since(began))
			switch len(at) {
			case 1, 2:
				return 503, "down"
			case 3:
				return 429, "retry 30 slow"
			}
			return 200, says("x", "stop")
		})
		req := gen.Request{ID: "a", Tokens: rollout.ByteChat{}.Prompt([]rollout.Message{{Content: "q"}}), MaxTokens: 10}
		if _, err := p.Generate(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if want := []time.Duration{0, time.Second, 3 * time.Second, 33 * time.Second}; !slices.Equal(at, want) {
			t.Errorf("asked at %v, want %v", at, want)
		}
		n := 0
		p = open(t, func(*http.Request, string) (int, string) { n++; return 400, `{"error":{"message":"too long"}}` })
		if _, err := p.Generate(t.Context(), req); n != 1 || err == nil || !strings.Contains(err.Error(), "400 Bad Request: too long") {
			t.Errorf("a refusal was asked for %d times: %v", n, err)
		}
		n = 0
		p = open(t, func(*http.Request, string) (int, string) { n++; return 500, "broken" })
		if _, err := p.Generate(t.Context(), req); n != 6 || err == nil || !strings.Contains(err.Error(), "after 6 attempts") {
			t.Errorf("a failure was asked for %d times: %v", n, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if c, err := p.Generate(ctx, req); err != nil || c.Finish != gen.FinishCancelled {
			t.Errorf("cancelled while it waits: %+v, %v", c, err)
		}
	})
}

func TestRefusals(t *testing.T) {
	for answer, want := range map[string]string{
		`{"data":[{"id":"a"},{"id":"b"}]}`: "it lists a, b", `{"data":[]}`: "has no model", `nonsense`: "not the JSON",
	} {
		client := &http.Client{Transport: server(func(*http.Request, string) (int, string) { return 200, answer })}
		if _, err := New(t.Context(), Options{URL: "http://h", Client: client}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("models %s: %v", answer, err)
		}
	}
	var nobody unreachable // is told at once
	_, err := New(t.Context(), Options{URL: "http://h", Client: &http.Client{Transport: &nobody}})
	if nobody.asked != 1 || err == nil || !strings.Contains(err.Error(), "is the server running there?") {
		t.Errorf("nobody was asked %d times: %v", nobody.asked, err)
	}
	p := open(t, func(*http.Request, string) (int, string) { return 200, `{"choices":[]}` })
	good := rollout.ByteChat{}.Prompt([]rollout.Message{{Content: "q"}})
	for want, req := range map[string]gen.Request{
		"0 choices": {Tokens: good, MaxTokens: 1}, "top-p": {Tokens: good, MaxTokens: 1, Sampling: gen.Sampling{TopK: 3}}, "middle": {Tokens: good[:1], MaxTokens: 1},
	} {
		if _, err := p.Generate(t.Context(), req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}

// unreachable is an address where nobody listens.
type unreachable struct{ asked int }

func (u *unreachable) RoundTrip(*http.Request) (*http.Response, error) {
	u.asked++
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
}
