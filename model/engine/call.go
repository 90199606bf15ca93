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
	limit    int // new tokens, at most

	out  gen.Completion
	err  error
	done chan struct{}
}

// draw is one sampled token.
type draw struct {
	token             int32
	logprob, sampling float32
}

// position of the next token in the history.
func (c *call) position() int { return len(c.req.Tokens) + len(c.out.Tokens) }

// take records a token and says whether the completion ends with it, and why.
func (c *call) take(d draw, version int64) bool {
	c.out.Tokens = append(c.out.Tokens, d.token)
	c.out.Logprobs = append(c.out.Logprobs, d.logprob)
	c.out.SamplingLogprobs = append(c.out.SamplingLogprobs, d.sampling)
	c.out.Versions = append(c.out.Versions, version)
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
