package serve

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/ssr-go/ssr/model/gen"
)

// part is a piece of a choice: all of it, or what a stream adds to it.
type part struct {
	text   string
	tokens []sampled
	// finish is "" as long as the choice goes on.
	finish gen.FinishReason
}

// form is what the two endpoints differ in.
type form interface {
	// id begins an answer's id; object names a whole answer and a streamed chunk.
	id() string
	object(stream bool) string
	whole(s *Server, j *job, index int, p part) any
	delta(s *Server, j *job, index int, first bool, p part) any
}

// answer is the JSON of an answer, or of a chunk of a streamed one.
type answer struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	Model   string `json:"model"`
	Choices []any  `json:"choices"`
	Usage   *usage `json:"usage,omitempty"`
}

type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
}

func (s *Server) chat(w http.ResponseWriter, r *http.Request) {
	var in chatRequest
	err := s.decode(w, r, &in)
	if err == nil {
		var j *job
		if j, err = s.chatJob(&in); err == nil {
			err = s.answer(w, r, j, chatForm{})
		}
	}
	if err != nil {
		writeError(w, err)
	}
}

func (s *Server) completions(w http.ResponseWriter, r *http.Request) {
	var in textRequest
	err := s.decode(w, r, &in)
	if err == nil {
		var j *job
		if j, err = s.textJob(&in); err == nil {
			err = s.answer(w, r, j, textForm{})
		}
	}
	if err != nil {
		writeError(w, err)
	}
}

// answer generates all choices, side by side, and writes them. An error means
// that nothing was written.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, j *job, f form) error {
	head := answer{ID: f.id() + rand.Text(), Object: f.object(j.stream), Created: time.Now().Unix(), Model: s.opts.Name}
	choices := len(j.prompts) * j.n
	out := &stream{w: w}
	parts := make([]part, choices)
	var sampledTokens atomic.Int64
	all, ctx := errgroup.WithContext(r.Context())
	for i := range choices {
		first := true
		all.Go(func() error {
			n, err := s.generate(ctx, j, i, func(p part) error {
				if !j.stream {
					parts[i] = p
					return nil
				}
				chunk := head
				chunk.Choices = []any{f.delta(s, j, i, first, p)}
				first = false
				return out.send(chunk)
			})
			sampledTokens.Add(int64(n))
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return out.fail(err)
	}
	count := &usage{CompletionTokens: int(sampledTokens.Load())}
	for _, p := range j.prompts {
		count.PromptTokens += len(p)
	}
	count.TotalTokens = count.PromptTokens + count.CompletionTokens
	head.Choices = []any{}
	if j.stream {
		if j.usage {
			head.Usage = count
			if err := out.send(head); err != nil {
				return out.fail(err)
			}
		}
		out.end()
		return nil
	}
	head.Usage = count
	for i, p := range parts {
		head.Choices = append(head.Choices, f.whole(s, j, i, p))
	}
	writeJSON(w, http.StatusOK, head)
	return nil
}

// generate samples choice index, gives emit its parts, the last with a reason to
// finish, and returns how many tokens were sampled.
func (s *Server) generate(ctx context.Context, j *job, index int, emit func(part) error) (int, error) {
	req := j.request
	prompt := j.prompts[index/j.n]
	req.Tokens = slices.Clone(prompt)
	// The draws are a function of the seed, the prompt and the choice's number.
	// Cached keys and values go by the same name, which requests alike may share.
	req.ID = fmt.Sprintf("%x/%d/%d", digest(prompt), req.Seed, index)
	req.StopStrings = slices.Concat(j.stops, j.ends)
	defer s.generator.Release(req.ID)

	left := s.opts.Context - len(prompt)
	if j.maxTokens > 0 {
		left = min(left, j.maxTokens)
	}
	piece := left
	if j.stream && len(j.tools) == 0 { // calls are found in whole turns
		piece = streamTokens
	}
	answer := text{decode: s.tokenizer.AppendDecode, stops: j.stops, ends: j.ends}
	if j.echo {
		p, err := s.echo(ctx, j, prompt)
		if err != nil {
			return 0, err
		}
		answer.runes = utf8.RuneCountInString(p.text)
		if j.scoreOnly {
			p.finish = gen.FinishLength
			return 0, emit(p)
		}
		rest := emit
		emit = func(q part) error {
			q.text, q.tokens = p.text+q.text, append(p.tokens, q.tokens...)
			p = part{}
			return rest(q)
		}
	}
	for {
		req.MaxTokens = min(piece, left)
		c, err := s.generator.Generate(ctx, req)
		if err != nil {
			return 0, err
		}
		if c.Finish == gen.FinishCancelled {
			return 0, context.Cause(ctx)
		}
		sampledNow := 0
		ended := c.Finish == gen.FinishStop
		for i, id := range c.Tokens {
			sampledNow++
			if slices.Contains(req.StopTokens, id) {
				break
			}
			var top []alternative
			if req.Alternatives > 0 {
				for _, a := range c.Alternatives[i] {
					top = append(top, alternative{s.tokenizer.AppendDecode(nil, a.Token), a.Logprob})
				}
			}
			if answer.add(id, c.Logprobs[i], top) {
				ended = true
				break
			}
		}
		req.Tokens = append(req.Tokens, c.Tokens[:sampledNow]...)
		left -= sampledNow
		var p part
		switch {
		case ended:
			p.finish = gen.FinishStop
		case left == 0 || len(c.Tokens) < req.MaxTokens:
			p.finish = gen.FinishLength
		}
		p.text, p.tokens = answer.take(p.finish != "")
		if p.text != "" || len(p.tokens) > 0 || p.finish != "" {
			if err := emit(p); err != nil {
				return 0, err
			}
		}
		if p.finish != "" {
			return len(req.Tokens) - len(prompt), nil
		}
	}
}

// echo is the prompt as the beginning of the answer.
func (s *Server) echo(ctx context.Context, j *job, prompt []int32) (part, error) {
	var scores []float64
	if j.logprobs {
		var err error
		if scores, err = s.opts.Score(ctx, prompt); err != nil {
			return part{}, err
		}
	}
	t := text{decode: s.tokenizer.AppendDecode}
	for i, id := range prompt {
		logprob := float32(0)
		if scores != nil {
			logprob = float32(scores[i])
		}
		t.add(id, logprob, nil)
	}
	t.tokens[0].unscored = true
	p := part{}
	p.text, p.tokens = t.take(true)
	return p, nil
}

// digest is a short name for a history.
func digest(ids []int32) []byte {
	h := sha256.New()
	var b [4]byte
	for _, id := range ids {
		binary.LittleEndian.PutUint32(b[:], uint32(id))
		h.Write(b[:])
	}
	return h.Sum(nil)[:8]
}
