package serve_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/serve"
)

func TestChatCompletion(t *testing.T) {
	g := says("né")
	s := serve.New(g, byteTokens{}, options())
	status, body := post(t, s, "/v1/chat/completions", `{"model":"tiny","seed":7,"temperature":0.5,"top_p":0.9,"logprobs":true,
		"messages":[{"role":"developer","content":"a"},{"role":"user","content":[{"type":"text","text":"b"},{"type":"text","text":"c"}]}]}`)
	if status != http.StatusOK {
		t.Fatal(status, body)
	}
	_, choices, _ := strings.Cut(body, `"choices":`)
	want := `[{"index":0,"message":{"role":"assistant","content":"né"},"logprobs":{"content":[` +
		`{"token":"n","logprob":-0.125,"bytes":[110],"top_logprobs":[]},` +
		`{"token":"\ufffd","logprob":-0.25,"bytes":[195],"top_logprobs":[]},` +
		`{"token":"\ufffd","logprob":-0.375,"bytes":[169],"top_logprobs":[]}]},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":17,"completion_tokens":4,"total_tokens":21}}` + "\n"
	if diff := cmp.Diff(want, choices); diff != "" {
		t.Error(diff)
	}
	req := g.requests[0]
	if got := string(byteTokens{}.AppendDecode(nil, req.Tokens...)); got != "system:a|user:bc|" {
		t.Errorf("the prompt is %q", got)
	}
	if req.Seed != 7 || req.Sampling != (gen.Sampling{Temperature: 0.5, TopP: 0.9}) || req.MaxTokens != 1000-17 {
		t.Errorf("the policy is asked for %+v", req)
	}
	if len(g.live) != 0 {
		t.Errorf("not released: %v", g.live)
	}
}

func TestCompletionLogprobs(t *testing.T) {
	s := serve.New(says("né!"), byteTokens{}, options())
	_, body := post(t, s, "/v1/completions", `{"model":"tiny","prompt":[65,66],"logprobs":0,"max_tokens":4}`)
	c := decode(t, body).Choices[0]
	if c.Text != "né!" || c.FinishReason != "length" {
		t.Errorf("%q ends by %q", c.Text, c.FinishReason)
	}
	if diff := cmp.Diff([]float64{-0.125, -0.25, -0.375, -0.5}, c.Logprobs.TokenLogprobs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int{0, 1, 2, 2}, c.Logprobs.TextOffset); diff != "" {
		t.Error(diff)
	}
}

// A streamed answer is the whole one in pieces, and both are what the script and
// the stop strings say.
func TestStreamIsTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringOfN(rapid.RuneFrom([]rune("abé世")), 0, 20, -1)
		scripts := rapid.SliceOfN(word, 6, 6).Draw(t, "scripts")
		stops := rapid.SliceOfN(rapid.StringOfN(rapid.RuneFrom([]rune("abé世")), 1, 3, -1), 0, 3).Draw(t, "stops")
		most := rapid.IntRange(1, 40).Draw(t, "max_tokens")
		n := rapid.IntRange(1, 3).Draw(t, "n")
		g := says("")
		g.script = func(_ uint64, choice int) string { return scripts[choice] }
		s := serve.New(g, byteTokens{}, options())
		quoted := []string{}
		for _, stop := range stops {
			quoted = append(quoted, fmt.Sprintf("%q", stop))
		}
		ask := func(more string) (int, string) {
			return post(t, s, "/v1/completions", fmt.Sprintf(`{"model":"tiny","prompt":["x","yy"],"n":%d,"max_tokens":%d,"logprobs":0,"stop":[%s]%s}`,
				n, most, strings.Join(quoted, ","), more))
		}
		_, body := ask("")
		whole := decode(t, body)
		_, body = ask(`,"stream":true,"stream_options":{"include_usage":true}`)
		all := events(t, body)

		texts, finish, logprobs := make([]string, 2*n), make([]string, 2*n), make([][]float64, 2*n)
		for _, e := range all[:len(all)-1] {
			c := e.Choices[0]
			texts[c.Index] += c.Text
			finish[c.Index] += c.FinishReason
			logprobs[c.Index] = append(logprobs[c.Index], c.Logprobs.TokenLogprobs...)
		}
		if last := all[len(all)-1]; len(last.Choices) != 0 || *last.Usage != *whole.Usage {
			t.Fatalf("usage %+v in the stream, %+v in the whole", last.Usage, whole.Usage)
		}
		for i, c := range whole.Choices {
			if diff := cmp.Diff(slices.Clip(c.Logprobs.TokenLogprobs), append([]float64{}, logprobs[i]...)); diff != "" {
				t.Fatalf("logprobs: %s", diff)
			}
			text, reason := scripts[i], "stop"
			if len(text) >= most { // the end takes a token, too
				text, reason = text[:most], "length"
			}
			cut := len(text)
			for end := 1; end <= len(text) && reason != "cut"; end++ { // the first to be complete, then the longest
				for _, stop := range stops {
					if strings.HasSuffix(text[:end], stop) {
						cut, reason = min(cut, end-len(stop)), "cut"
					}
				}
			}
			if reason == "cut" {
				reason = "stop"
			}
			want := strings.ToValidUTF8(text[:cut], "")
			for _, got := range []string{c.Text, texts[i]} {
				if got := strings.ReplaceAll(got, "\ufffd", ""); got != want {
					t.Fatalf("choice %d is %q, want %q", i, got, want)
				}
			}
			if c.Text != texts[i] || c.FinishReason != reason || finish[i] != reason || len(c.Logprobs.TokenLogprobs) != cut {
				t.Fatalf("choice %d: %q and %q, %q and %q, want %q; %d logprobs for %d tokens", i, c.Text, texts[i], c.FinishReason, finish[i], reason, len(c.Logprobs.TokenLogprobs), cut)
			}
		}
		if len(g.live) != 0 {
			t.Fatalf("not released: %v", g.live)
		}
	})
}

// Choices and prompts differ in their draws; the same request has the same ones.
func TestSeeds(t *testing.T) {
	ids := func(body string) []string {
		g := says("x")
		post(t, serve.New(g, byteTokens{}, options()), "/v1/completions", body)
		var all []string
		for _, r := range g.requests {
			all = append(all, fmt.Sprint(r.Seed, " ", r.ID))
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	const seeded = `{"model":"tiny","prompt":["a","a","b"],"n":2,"seed":-3}`
	if one := ids(seeded); len(one) != 6 || !slices.Equal(one, ids(seeded)) {
		t.Errorf("draws of a seed: %q, then %q", one, ids(seeded))
	}
	const free = `{"model":"tiny","prompt":"a"}`
	if slices.Equal(ids(free), ids(free)) {
		t.Error("two requests without a seed have the same draws")
	}
}

// Alternatives stand beside each token, best first, in both endpoints and in streams.
func TestTopLogprobs(t *testing.T) {
	s := serve.New(says("né"), byteTokens{}, options())
	for _, stream := range []string{"", `,"stream":true`} {
		_, body := post(t, s, "/v1/chat/completions", `{"model":"tiny","logprobs":true,"top_logprobs":2,"messages":[{"role":"user","content":"a"}]`+stream+`}`)
		const want = `{"token":"n","logprob":-0.125,"bytes":[110],"top_logprobs":[{"token":"n","logprob":-0.125,"bytes":[110]},{"token":"o","logprob":-1.125,"bytes":[111]}]}`
		if !strings.Contains(body, want) {
			t.Errorf("%s has no %s", body, want)
		}
		_, body = post(t, s, "/v1/completions", `{"model":"tiny","logprobs":2,"prompt":"a"`+stream+`}`)
		if !strings.Contains(body, `"top_logprobs":[{"n":-0.125,"o":-1.125}`) {
			t.Errorf("%s has no alternatives to n", body)
		}
	}
}

func TestSampling(t *testing.T) {
	g := says("x")
	post(t, serve.New(g, byteTokens{}, options()), "/v1/completions", `{"model":"tiny","prompt":"a","temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1}`)
	if got, want := g.requests[0].Sampling, (gen.Sampling{Temperature: 0.5, TopP: 0.9, TopK: 40, MinP: 0.1}); got != want {
		t.Errorf("sampled with %+v, want %+v", got, want)
	}
}

// An echoed prompt is the beginning of the text, scored where that is wanted, alone
// where no tokens are.
func TestEcho(t *testing.T) {
	g, o := says("né"), options()
	o.Score = func(_ context.Context, tokens []int32) ([]float64, error) {
		scores := make([]float64, len(tokens))
		for i, id := range tokens {
			scores[i] = -float64(id) / 8
		}
		return scores, nil
	}
	s := serve.New(g, byteTokens{}, o)
	_, body := post(t, s, "/v1/completions", `{"model":"tiny","prompt":"éa","echo":true,"logprobs":0,"max_tokens":1}`)
	const want = `"text":"éan","logprobs":{"tokens":["\ufffd","\ufffd","a","n"],"token_logprobs":[null,-21.125,-12.125,-0.125],"top_logprobs":null,"text_offset":[0,1,1,2]},"finish_reason":"length"`
	if !strings.Contains(body, want) {
		t.Errorf("%s has no %s", body, want)
	}
	before := len(g.requests)
	_, body = post(t, s, "/v1/completions", `{"model":"tiny","prompt":["ab","c"],"echo":true,"logprobs":0,"max_tokens":0}`)
	if r := decode(t, body); len(r.Choices) != 2 || r.Choices[0].Text != "ab" || r.Choices[1].Text != "c" || r.Usage.Completion != 0 || len(g.requests) != before {
		t.Errorf("scoring alone, after %d requests of %d: %s", len(g.requests), before, body)
	}
	text := ""
	_, body = post(t, s, "/v1/completions", `{"model":"tiny","prompt":"ab","echo":true,"stream":true}`)
	for _, e := range events(t, body) {
		text += e.Choices[0].Text
	}
	if text != "abné" {
		t.Errorf("a stream echoes %q", text)
	}
}

func TestErrors(t *testing.T) {
	o := options()
	o.BodyBytes = 2000
	s := serve.New(says("x"), byteTokens{}, o)
	chat := func(more string) string {
		return `{"model":"tiny","messages":[{"role":"user","content":"a"}]` + more + `}`
	}
	text := func(more string) string { return `{"model":"tiny","prompt":"a"` + more + `}` }
	for _, c := range []struct {
		path, body         string
		status             int
		param, code, about string
	}{
		{"/v1/chat/completions", chat(`,"temperature":-1`), 400, "temperature", "", "negative"},
		{"/v1/chat/completions", chat(`,"top_p":0`), 400, "top_p", "", "above 0"},
		{"/v1/chat/completions", chat(`,"top_k":-2`), 400, "top_k", "", "keep all"},
		{"/v1/chat/completions", chat(`,"min_p":1.5`), 400, "min_p", "", "between 0 and 1"},
		{"/v1/chat/completions", chat(`,"n":0`), 400, "n", "", "between 1 and 128"},
		{"/v1/chat/completions", chat(`,"max_completion_tokens":0`), 400, "max_completion_tokens", "", "not positive"},
		{"/v1/chat/completions", chat(`,"top_logprobs":2`), 400, "top_logprobs", "", "set logprobs"},
		{"/v1/chat/completions", chat(`,"logprobs":true,"top_logprobs":21`), 400, "top_logprobs", "", "between 0 and 20"},
		{"/v1/chat/completions", chat(`,"response_format":{"type":"json_object"}`), 400, "response_format", "", "json_object"},
		{"/v1/chat/completions", chat(`,"tool_choice":"required"`), 400, "tool_choice", "", "required"},
		{"/v1/chat/completions", chat(`,"frequency_penalty":0.1`), 400, "frequency_penalty", "", "not supported"},
		{"/v1/chat/completions", chat(`,"tempreature":1`), 400, "", "", `unknown field "tempreature"`},
		{"/v1/chat/completions", chat(`,"temperature":"hot"`), 400, "temperature", "", `temperature: it is a string; want a number`},
		{"/v1/chat/completions", chat(`,"n":1.5`), 400, "n", "", `n: it is a number 1.5; want a whole number`},
		{"/v1/chat/completions", chat(`,"stop":["a",""]`), 400, "stop", "", "0 bytes"},
		{"/v1/chat/completions", `{"model":"tiny","messages":[]}`, 400, "messages", "", "there are none"},
		{"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"usr","content":"a"}]}`, 400, "", "", `no role "usr"`},
		{"/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, 400, "", "", "image_url"},
		{"/v1/chat/completions", `{"messages":[]}`, 400, "model", "", `"tiny"`},
		{"/v1/chat/completions", `{"model":"gpt","messages":[]}`, 404, "model", "model_not_found", "tiny"},
		{"/v1/chat/completions", `{"model":`, 400, "", "", "body"},
		{"/v1/chat/completions", chat(`} {`), 400, "", "", "follows"},
		{"/v1/completions", text(`,"logprobs":21`), 400, "logprobs", "", "between 0 and 20"},
		{"/v1/completions", text(`,"echo":true,"logprobs":0`), 400, "echo", "", "does not score"},
		{"/v1/completions", text(`,"max_tokens":0`), 400, "max_tokens", "", "not positive"},
		{"/v1/completions", text(`,"best_of":2`), 400, "best_of", "", "not supported"},
		{"/v1/completions", text(`,"stream_options":{}`), 400, "stream_options", "", "stream"},
		{"/v1/completions", `{"model":"tiny","prompt":[[1],[300]]}`, 400, "prompt", "", "token 300"},
		{"/v1/completions", `{"model":"tiny","prompt":""}`, 400, "prompt", "", "empty"},
		{"/v1/completions", `{"model":"tiny"}`, 400, "prompt", "", "none"},
		{"/v1/completions", `{"model":"tiny","prompt":{}}`, 400, "", "", "prompt"},
		{"/v1/completions", `{"model":"tiny","prompt":"` + strings.Repeat("a", 1000) + `"}`, 400, "prompt", "context_length_exceeded", "1000 tokens"},
		{"/v1/completions", `{"model":"tiny","prompt":"` + strings.Repeat("a", 3000) + `"}`, 413, "", "request_too_large", "2000 bytes"},
		{"/v1/embeddings", `{}`, 404, "", "", "POST /v1/embeddings"},
	} {
		status, body := post(t, s, c.path, c.body)
		e := decode(t, body).Error
		if e == nil || status != c.status || e.Param != c.param || e.Code != c.code || !strings.Contains(e.Message, c.about) || e.Type != "invalid_request_error" {
			t.Errorf("%s %.90s: %d %s", c.path, c.body, status, body)
		}
	}
}

func TestModels(t *testing.T) {
	s := httptest.NewServer(serve.New(says("x"), byteTokens{}, options()))
	defer s.Close()
	for path, want := range map[string]string{
		"/v1/models": `"data":[{"id":"tiny","object":"model"`, "/v1/models/tiny": `{"id":"tiny"`, "/v1/models/gpt": `"code":"model_not_found"`,
	} {
		r, err := s.Client().Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		if body := read(t, r); !strings.Contains(body, want) {
			t.Errorf("%s: %s", path, body)
		}
	}
}

// hanging is a generator that waits for its context, and a request to it.
func hanging() (*scripted, string) {
	g := says("")
	g.hang = make(chan struct{})
	return g, `{"model":"tiny","prompt":"a"}`
}

func TestClientGoes(t *testing.T) {
	g, body := hanging()
	ended := make(chan struct{})
	api := serve.New(g, byteTokens{}, options())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		api.ServeHTTP(w, r)
	}))
	defer s.Close()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "POST", s.URL+"/v1/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-g.hang; cancel() }()
	if r, err := s.Client().Do(req); err == nil {
		t.Fatal("answered: ", read(t, r))
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("generation goes on after its client has gone")
	}
	if len(g.live) != 0 {
		t.Errorf("not released: %v", g.live)
	}
}

func TestDeadline(t *testing.T) {
	g, body := hanging()
	o := options()
	o.Deadline = 20 * time.Millisecond
	go func() { <-g.hang }()
	status, answer := post(t, serve.New(g, byteTokens{}, o), "/v1/completions", body)
	if e := decode(t, answer).Error; status != http.StatusGatewayTimeout || e.Code != "timeout" {
		t.Errorf("%d %s", status, answer)
	}
}

// A server that ends lets requests go on for a while, then tells them.
func TestShutdown(t *testing.T) {
	g, body := hanging()
	o := options()
	o.Grace = 30 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-g.hang; cancel() }()
	served := make(chan error, 1)
	go func() { served <- serve.New(g, byteTokens{}, o).Serve(ctx, l) }()
	client := &http.Client{}
	defer client.CloseIdleConnections()
	began := time.Now()
	r, err := client.Post("http://"+l.Addr().String()+"/v1/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	answer := read(t, r)
	if e := decode(t, answer).Error; r.StatusCode != http.StatusServiceUnavailable || e.Code != "shutting_down" || time.Since(began) < o.Grace {
		t.Errorf("%d %s", r.StatusCode, answer)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := client.Get("http://" + l.Addr().String() + "/v1/models"); err == nil {
		t.Error("a server that has ended answers")
	}
}
