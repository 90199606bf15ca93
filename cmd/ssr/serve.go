package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/engine"
	"github.com/ssr-go/ssr/model/serve"
	"github.com/ssr-go/ssr/model/token"
)

type serveCmd struct {
	modelFlag
	Address    string        `default:"127.0.0.1:8000" help:"Where to listen; there is no authentication. Port 0 takes a free one."`
	Name       string        `help:"The model's name in the API; by default its folder's."`
	Batch      int           `default:"256" help:"Most answers that are generated side by side."`
	CacheBytes int64         `help:"Memory of the key-value cache, which bounds the context, too; by default what is left of a GPU, and on a CPU 512 MiB."`
	Deadline   time.Duration `default:"10m" help:"Most time for a request."`
	computeFlags
}

// scored is how many tokens of a request a GPU keeps memory for to score them.
const scored = 16 << 10

// Run serves until it is interrupted, which is how it ends well.
func (c *serveCmd) Run(ctx context.Context, o output) error {
	var how model.Options
	if err := c.apply(&how); err != nil {
		return err
	}
	p, err := openPolicy(c.Model, how)
	if err != nil {
		return err
	}
	defer p.Close()
	shape := p.Config()
	scoring, _ := model.ScoringMemory(shape, p.Options(), 1, []int{min(shape.MaxPositions, scored)})
	c.CacheBytes, err = cacheOf(p.Policy, engine.Options{MaxSequences: c.Batch, CacheBytes: c.CacheBytes}, scoring)
	if err != nil {
		return err
	}
	blocks := c.CacheBytes / p.CacheBlock()
	if blocks == 0 {
		return fmt.Errorf("--cache-bytes is %d; one block of %d tokens takes %d", c.CacheBytes, native.BlockTokens, p.CacheBlock())
	}
	g, err := p.newGenerator(policyConfig{Batch: c.Batch, CacheBytes: c.CacheBytes})
	if err != nil {
		return err
	}
	defer g.Close()
	dir, err := filepath.Abs(c.Model)
	if err != nil {
		return err
	}
	options := serve.Options{
		Name: cmp.Or(c.Name, filepath.Base(dir)), StopTokens: shape.EOS, Deadline: c.Deadline,
		Context: min(shape.MaxPositions, int(blocks)*native.BlockTokens),
	}
	options.Score = func(ctx context.Context, tokens []int32) ([]float64, error) {
		return p.Logprobs(ctx, tokens, []int{0, len(tokens)})
	}
	chat, err := token.NewChat(p.tokenizer)
	if err == nil {
		options.Chat = serve.PlainChat{Format: chat, Protocol: token.Plain}
		if chat.ShowsTools() {
			options.Chat = serve.TemplateChat{Format: chat}
		}
	} else {
		fmt.Fprintf(o.err, "ssr: completions only: %v\n", err)
	}
	l, err := net.Listen("tcp", c.Address)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(o.out, "serving %s, context %d, at http://%s/v1\n", options.Name, options.Context, l.Addr()); err != nil {
		l.Close()
		return err
	}
	return serve.New(g, p.tokenizer, options).Serve(ctx, l)
}
