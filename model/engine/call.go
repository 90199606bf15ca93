package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/model/gen"
)

// call is one request in progress. The loop owns it until done is closed.
type call struct {
	ctx      context.Context
	req      gen.Request
	decoder  Decoder
	stream   gen.Stream
	sampling native.Sampling
	limit    int  // new tokens, at most
	stale    bool // tell the age of the cache

	out  gen.Completion
	err  error
	done chan struct{}
}

// draw is one sampled token.
type draw struct {
	token             int32
	logprob, sampling float32
	oldest            int64 // version of a part of the cache
	alternatives      []gen.Alternative
}

// position of the next token in the history.
func (c *call) position() int { return len(c.req.Tokens) + len(c.out.Tokens) }

// take records a token and says whether the completion ends with it, and why.
func (c *call) take(d draw, version int64) bool {
	c.out.Tokens = append(c.out.Tokens, d.token)
	c.out.Logprobs = append(c.out.Logprobs, d.logprob)
	c.out.SamplingLogprobs = append(c.out.SamplingLogprobs, d.sampling)
	c.out.Versions = append(c.out.Versions, version)
	if c.stale {
		c.out.CacheVersions = append(c.out.CacheVersions, d.oldest)
	}
	if c.req.Alternatives > 0 {
		c.out.Alternatives = append(c.out.Alternatives, d.alternatives)
	}
	switch {
	case slices.Contains(c.req.StopTokens, d.token) || c.stopString():
		c.out.Finish = gen.FinishStop
	case len(c.out.Tokens) >= c.limit:
		c.out.Finish = gen.FinishLength
	default:
		return false
	}
	return true
}

func (c *call) finish(err error) {
	c.err = err
	if err != nil {
		c.out = gen.Completion{}
	}
	close(c.done)
}

// alternatives are the n most probable tokens of a row of logits, given that token
// has this log-probability.
func alternatives(logits []float32, n int, token int32, logprob float32) []gen.Alternative {
	before := func(a, b int32) bool { return logits[a] > logits[b] || logits[a] == logits[b] && a < b }
	best := make([]int32, 0, n+1)
	for id := range int32(len(logits)) {
		if len(best) == n && !before(id, best[n-1]) {
			continue
		}
		at, _ := slices.BinarySearchFunc(best, id, func(a, b int32) int {
			if before(a, b) {
				return -1
			}
			return 1
		})
		best = slices.Insert(best, at, id)
		best = best[:min(len(best), n)]
	}
	out := make([]gen.Alternative, len(best))
	for i, id := range best {
		out[i] = gen.Alternative{Token: id, Logprob: float32(float64(logprob) + float64(logits[id]) - float64(logits[token]))}
	}
	return out
}

// slack is more bytes than a character that the window's start cuts can add.
const slack = 8

// stopString reports whether the new text ends a stop string. It decodes only as
// many of the last tokens as the longest one can reach into: earlier text was
// looked at when its tokens came.
func (c *call) stopString() bool {
	if len(c.req.StopStrings) == 0 {
		return false
	}
	longest := 0
	for _, s := range c.req.StopStrings {
		longest = max(longest, len(s))
	}
	tokens := c.out.Tokens
	for n := min(8, len(tokens)); ; n = min(2*n, len(tokens)) {
		text := c.decoder.Decode(tokens[len(tokens)-n:])
		if len(text) < longest+slack && n < len(tokens) {
			continue
		}
		return slices.ContainsFunc(c.req.StopStrings, func(s string) bool { return s != "" && strings.Contains(text, s) })
	}
}
