package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/model/gen"
)

// letters decodes token 0 to "a", 1 to "b", … and 60 to half of a character.
type letters struct{}

func (letters) Decode(ids []int32) string {
	var b strings.Builder
	for _, id := range ids {
		if id == 60 {
			b.WriteByte("é"[0])
		} else {
			b.WriteByte(byte('A' + id))
		}
	}
	return b.String()
}

func TestStops(t *testing.T) {
	e := start(t, tiny(t, 1), Options{Decoder: letters{}})
	req := gen.Request{ID: "a", Seed: 1, Tokens: prompt(1, 5), MaxTokens: 100, Sampling: gen.Sampling{Temperature: 1}}
	full := generate(t, e, req)
	if len(full.Tokens) != 100 || full.Finish != gen.FinishLength {
		t.Fatalf("%d tokens, finish %q; want 100 and length", len(full.Tokens), full.Finish)
	}
	text := letters{}.Decode(full.Tokens)
	check := func(name string, req gen.Request, n int) {
		t.Helper()
		c := generate(t, e, req)
		if !slices.Equal(c.Tokens, full.Tokens[:n]) || c.Finish != gen.FinishStop {
			t.Errorf("%s: %d tokens, finish %q; want %d and stop", name, len(c.Tokens), c.Finish, n)
		}
	}
	first := func(id int32) int { return slices.Index(full.Tokens, id) + 1 }

	withToken := req
	withToken.StopTokens = []int32{full.Tokens[40], vocab - 1}
	check("stop token", withToken, min(first(full.Tokens[40]), first(vocab-1)+1000*b2i(first(vocab-1) == 0)))
	for _, at := range []struct{ from, to int }{{30, 31}, {30, 34}, {2, 40}, {0, 99}} {
		s := text[at.from:at.to]
		withString := req
		withString.StopStrings = []string{"never seen", s}
		check(fmt.Sprintf("stop string of %d tokens", len(s)), withString, strings.Index(text, s)+len(s))
	}

	noDecoder := start(t, tiny(t, 1), Options{})
	withString := req
	withString.StopStrings = []string{"x"}
	if _, err := noDecoder.Generate(t.Context(), withString); err == nil || !strings.Contains(err.Error(), "decoder") {
		t.Errorf("stop strings without a decoder: %v", err)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestContextWindow(t *testing.T) {
	e := start(t, tiny(t, 1), Options{})
	for _, c := range []struct{ prompt, max, want int }{{150, 100, 10}, {159, 100, 1}, {160, 100, 0}, {150, 10, 10}, {150, 9, 9}} {
		got := generate(t, e, gen.Request{ID: "a", Tokens: prompt(1, c.prompt), MaxTokens: c.max, Sampling: gen.Sampling{Temperature: 1}})
		if len(got.Tokens) != c.want || got.Finish != gen.FinishLength {
			t.Errorf("%d tokens asked after %d in a window of 160: %d, finish %q", c.max, c.prompt, len(got.Tokens), got.Finish)
		}
	}
}

func TestCancellation(t *testing.T) {
	e := start(t, tiny(t, 1), Options{Decoder: letters{}})
	req := gen.Request{ID: "a", Tokens: prompt(1, 5), MaxTokens: 150, Sampling: gen.Sampling{Temperature: 1}}
	full := generate(t, e, req)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := e.Generate(cancelled, req); err != nil || c.Finish != gen.FinishCancelled || len(c.Tokens) != 0 {
		t.Errorf("cancelled before it began: %+v, %v", c, err)
	}
	// A decoder that cancels in the middle stands for a caller who does.
	ctx, cancel := context.WithCancel(t.Context())
	at := 0
	stopping := start(t, tiny(t, 1), Options{Decoder: decoderFunc(func(ids []int32) string {
		if at++; at == 20 {
			cancel()
		}
		return letters{}.Decode(ids)
	})})
	withString := req
	withString.StopStrings = []string{"never seen"}
	c, err := stopping.Generate(ctx, withString)
	if err != nil || c.Finish != gen.FinishCancelled {
		t.Fatalf("cancelled in the middle: finish %q, %v", c.Finish, err)
	}
	if n := len(c.Tokens); n == 0 || n >= 150 || !slices.Equal(c.Tokens, full.Tokens[:n]) {
		t.Errorf("a cancelled completion has %d tokens that begin the whole one", len(c.Tokens))
	}
}

type decoderFunc func([]int32) string

func (f decoderFunc) Decode(ids []int32) string { return f(ids) }

func TestCloseEndsWaitingRequests(t *testing.T) {
	e := start(t, tiny(t, 2), Options{MaxSequences: 2})
	failures := make(chan error, 20)
	for i := range cap(failures) {
		go func() {
			_, err := e.Generate(context.Background(), gen.Request{ID: fmt.Sprint(i), Tokens: prompt(1, 5), MaxTokens: 155, Sampling: gen.Sampling{Temperature: 1}})
			failures <- err
		}()
	}
	for e.Stats().Steps < 3 {
		time.Sleep(time.Millisecond)
	}
	e.Close()
	closed := 0
	for range cap(failures) {
		if err := <-failures; errors.Is(err, ErrClosed) {
			closed++
		} else if err != nil {
			t.Error(err)
		}
	}
	if closed == 0 {
		t.Error("no request was ended by Close")
	}
	e.Close()
	if _, err := e.Generate(t.Context(), gen.Request{ID: "a", Tokens: prompt(1, 5), MaxTokens: 1}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	e.Release("a")
}
