// Package remote lets a policy behind an OpenAI-compatible server play episodes:
// to evaluate it, or to try out an environment before anything is trained. See
// https://platform.openai.com/docs/api-reference/chat.
//
// Histories are those of rollout.ByteChat, since the server's tokens are its own:
// limits of a context count bytes, and log-probabilities and versions are 0.
package remote

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/rollout"
)

// Options say where the policy is.
type Options struct {
	// URL is the base of the API, such as https://host/v1.
	URL string
	// Model is its name there; "" takes the only one that the server lists.
	Model string
	// Key authorises requests; "" sends none.
	Key string
	// MaxTokens bounds a turn in the server's tokens; default 4096.
	MaxTokens int
	// Attempts at a request that the server is too busy for or fails at; default 6,
	// with a pause of a second that doubles each time, or as the server asks for.
	Attempts int
	// Client sends the requests; default one that waits 10 minutes for an answer.
	Client *http.Client
}

// Policy is a rollout.Policy, safe for concurrent use.
type Policy struct{ opts Options }

var _ rollout.Policy = (*Policy)(nil)

// answerBytes bounds an answer of the server.
const answerBytes = 16 << 20

// New checks that the server has the model.
func New(ctx context.Context, o Options) (*Policy, error) {
	o.URL = strings.TrimSuffix(o.URL, "/")
	o.MaxTokens = cmp.Or(o.MaxTokens, 4096)
	o.Attempts = cmp.Or(o.Attempts, 6)
	if o.Client == nil {
		o.Client = &http.Client{Timeout: 10 * time.Minute}
	}
	p := &Policy{o}
	var list struct {
		Data []struct{ ID string }
	}
	err := p.retry(ctx, func() error {
		err := p.call(ctx, "GET", "/models", nil, &list)
		if op := new(net.OpError); errors.As(err, &op) && op.Op == "dial" {
			return fmt.Errorf("GET %s/models: %v; is the server running there?", o.URL, op) // mostly a wrong address, so not to be waited for
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("remote: %w", err)
	}
	var names []string
	for _, m := range list.Data {
		if m.ID == o.Model {
			return p, nil
		}
		names = append(names, m.ID)
	}
	if o.Model == "" && len(names) == 1 {
		p.opts.Model = names[0]
		return p, nil
	}
	return nil, fmt.Errorf("remote: %s has no model %q; it lists %s", o.URL, o.Model, strings.Join(names, ", "))
}

// Model is the policy's name at the server.
func (p *Policy) Model() string { return p.opts.Model }

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// messages reads a ByteChat's history: the last message is the user's, before it
// turns alternate, and what is left over at the beginning is the system's.
func messages(ids []int32) ([]message, error) {
	var all []message
	for len(ids) > 0 {
		n := 0
		for n < len(ids) && ids[n] != rollout.EndOfTurn {
			n++
		}
		if n == len(ids) {
			return nil, errors.New("the history ends in the middle of a message")
		}
		all = append(all, message{Content: rollout.ByteChat{}.Text(ids[:n])})
		ids = ids[n+1:]
	}
	for i := range all {
		switch left := len(all) - i; {
		case left%2 == 1:
			all[i].Role = "user"
		case i == 0:
			all[i].Role = "system"
		default:
			all[i].Role = "assistant"
		}
	}
	return all, nil
}

// Generate asks the server for the next turn. The turn ends after the first stop
// string in it; since servers leave those out, they are looked for here. Top-k and
// min-p, which the API does not have, are refused.
func (p *Policy) Generate(ctx context.Context, req gen.Request) (c gen.Completion, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("remote: %w", err)
		}
	}()
	if req.Sampling.TopK != 0 || req.Sampling.MinP != 0 {
		return c, errors.New("the API has temperature and top-p; set top_k and min_p to 0")
	}
	history, err := messages(req.Tokens)
	if err != nil {
		return c, err
	}
	body := struct {
		Model       string    `json:"model"`
		Messages    []message `json:"messages"`
		MaxTokens   int       `json:"max_tokens"`
		Temperature float64   `json:"temperature"`
		TopP        float64   `json:"top_p"`
		Seed        int64     `json:"seed"`
	}{
		p.opts.Model, history, min(p.opts.MaxTokens, req.MaxTokens), req.Sampling.Temperature, cmp.Or(req.Sampling.TopP, 1),
		int64(gen.NewStream(req.Seed, req.ID).Uniform(len(req.Tokens)) * (1 << 31)),
	}
	var answer struct {
		Choices []struct {
			Message struct{ Content string }
			Finish  string `json:"finish_reason"`
		}
	}
	err = p.retry(ctx, func() error { return p.call(ctx, "POST", "/chat/completions", body, &answer) })
	if err != nil {
		if ctx.Err() != nil {
			return gen.Completion{Finish: gen.FinishCancelled}, nil
		}
		return c, err
	}
	if len(answer.Choices) != 1 {
		return c, fmt.Errorf("%s answered with %d choices; want one", p.opts.URL, len(answer.Choices))
	}
	text, finish := answer.Choices[0].Message.Content, answer.Choices[0].Finish
	end := -1
	for _, s := range req.StopStrings {
		if i := strings.Index(text, s); i >= 0 && (end < 0 || i+len(s) < end) {
			end = i + len(s)
		}
	}
	c.Finish = gen.FinishStop
	switch {
	case end >= 0:
		text = text[:end]
	case finish == "length":
		c.Finish = gen.FinishLength
	}
	for i := range len(text) {
		c.Tokens = append(c.Tokens, int32(text[i]))
	}
	if c.Finish == gen.FinishStop && end < 0 || len(c.Tokens) == 0 {
		c.Tokens = append(c.Tokens, rollout.EndOfTurn)
	}
	if len(c.Tokens) > req.MaxTokens {
		c.Tokens, c.Finish = c.Tokens[:req.MaxTokens], gen.FinishLength
	}
	c.Logprobs, c.SamplingLogprobs = make([]float32, len(c.Tokens)), make([]float32, len(c.Tokens))
	c.Versions = make([]int64, len(c.Tokens))
	return c, nil
}

// busy is an answer that may be another one later.
type busy struct {
	error
	pause time.Duration // as the server asks for; 0 where it does not
}

func (b busy) Unwrap() error { return b.error }

// retry calls f until its error is none that may be another one later.
func (p *Policy) retry(ctx context.Context, f func() error) error {
	pause := time.Second
	for attempt := 1; ; attempt++ {
		err := f()
		var b busy
		if !errors.As(err, &b) || ctx.Err() != nil {
			return err
		}
		if attempt == p.opts.Attempts {
			return fmt.Errorf("after %d attempts: %w", attempt, err)
		}
		select {
		case <-time.After(max(pause, b.pause)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause *= 2
	}
}

// call sends a request with in as its JSON, where not nil, and reads that of the answer
// into out.
func (p *Policy) call(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, p.opts.URL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if p.opts.Key != "" {
		req.Header.Set("Authorization", "Bearer "+p.opts.Key)
	}
	res, err := p.opts.Client.Do(req)
	if err != nil {
		return busy{error: err}
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, answerBytes))
	if err != nil {
		return busy{error: fmt.Errorf("%s %s: %w", method, req.URL, err)}
	}
	if res.StatusCode != http.StatusOK {
		err := fmt.Errorf("%s %s: %s: %s", method, req.URL, res.Status, reason(data))
		if res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 500 {
			seconds, _ := strconv.Atoi(res.Header.Get("Retry-After")) // a date is taken for none
			return busy{err, time.Duration(max(seconds, 0)) * time.Second}
		}
		return err
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not the JSON that it should be: %w", method, req.URL, err)
	}
	return nil
}

// reason is what an error's body says.
func reason(data []byte) string {
	var e struct{ Error struct{ Message string } }
	if json.Unmarshal(data, &e) == nil && e.Error.Message != "" {
		return e.Error.Message
	}
	return string(data[:min(len(data), 200)])
}
