package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/token"
)

type modelCmd struct {
	Info     modelInfoCmd     `cmd:"" help:"Describe a model's shape and files."`
	Tokenize modelTokenizeCmd `cmd:"" help:"Turn text into token ids."`
	Logprobs modelLogprobsCmd `cmd:"" help:"Score sequences of token ids."`
	Generate modelGenerateCmd `cmd:"" help:"Continue a prompt."`
	Merge    modelMergeCmd    `cmd:"" help:"Merge an adapter in PEFT's layout into a model."`
}

// modelFlag names a model's folder.
type modelFlag struct {
	Model string `required:"" type:"existingdir" help:"The model's folder, in Hugging Face layout."`
}

type modelMergeCmd struct {
	modelFlag
	Adapter string `required:"" type:"existingdir" help:"The adapter's folder."`
	Out     string `required:"" type:"path" help:"The folder to write the merged model to."`
	DType   string `name:"save-dtype" default:"float32" enum:"float32,bfloat16" help:"How to store the weights: float32 or bfloat16."`
}

func (c *modelMergeCmd) Run(o output) error {
	d, err := dtype(c.DType)
	if err != nil {
		return err
	}
	lora, frozen, err := model.ReadLoRA(c.Adapter)
	if err != nil {
		return err
	}
	p, err := openPolicy(c.Model, model.Options{LoRA: lora, FreezeLayers: frozen})
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.LoadAdapter(c.Adapter); err != nil {
		return err
	}
	if err := p.save(c.Out, d); err != nil {
		return err
	}
	return check(fmt.Fprintf(o.out, "model: %s\n", c.Out))
}

type modelInfoCmd struct {
	modelFlag
	jsonFlag
}

// modelInfo is what info prints.
type modelInfo struct {
	ModelType    string   `json:"model_type"`
	Parameters   int      `json:"parameters"`
	Layers       int      `json:"layers"`
	Hidden       int      `json:"hidden"`
	Intermediate int      `json:"intermediate"`
	Heads        int      `json:"heads"`
	KVHeads      int      `json:"kv_heads"`
	HeadDim      int      `json:"head_dim"`
	Vocab        int      `json:"vocab"`
	Context      int      `json:"context"`
	Tied         bool     `json:"tied"`
	TokenizerIDs int      `json:"tokenizer_ids"`
	Specials     []string `json:"specials"`
	Chat         bool     `json:"chat"`
}

func (c *modelInfoCmd) Run(o output) error {
	p, err := openPolicy(c.Model, model.Options{})
	if err != nil {
		return err
	}
	defer p.Close()
	shape := p.Config()
	info := modelInfo{
		ModelType: shape.ModelType, Layers: shape.Layers, Hidden: shape.Hidden, Intermediate: shape.Intermediate,
		Heads: shape.Heads, KVHeads: shape.KVHeads, HeadDim: shape.HeadDim, Vocab: shape.VocabSize, Context: shape.MaxPositions,
		Tied: shape.TieEmbeddings, TokenizerIDs: p.tokenizer.VocabSize(), Specials: p.tokenizer.Specials(),
	}
	for _, param := range p.Parameters() {
		info.Parameters += param.Tensor.Len()
	}
	_, chatErr := token.NewChat(p.tokenizer)
	info.Chat = chatErr == nil
	if c.JSON {
		return printJSON(o.out, info)
	}
	t := ui.NewTable(o.out, table.Row{"", c.Model})
	t.AppendRows([]table.Row{
		{"architecture", info.ModelType}, {"parameters", ui.Thousands(info.Parameters)},
		{"layers", info.Layers}, {"hidden, intermediate", fmt.Sprintf("%d, %d", info.Hidden, info.Intermediate)},
		{"heads, key-value heads, width", fmt.Sprintf("%d, %d, %d", info.Heads, info.KVHeads, info.HeadDim)},
		{"vocabulary, tokenizer", fmt.Sprintf("%d rows, %d ids, %d special", info.Vocab, info.TokenizerIDs, len(info.Specials))},
		{"context", info.Context}, {"tied head", info.Tied},
	})
	t.Render()
	if chatErr != nil {
		fmt.Fprintf(o.out, "cannot play: %v\n", chatErr)
	}
	return nil
}

type modelTokenizeCmd struct {
	modelFlag
	jsonFlag
	Text    string `arg:"" optional:"" help:"The text; standard input when absent."`
	Special bool   `help:"Read special tokens spelled out in the text as such. For trusted text only."`
}

func (c *modelTokenizeCmd) Run(ctx context.Context, o output) error {
	t, err := token.Load(c.Model)
	if err != nil {
		return err
	}
	text, err := textOrInput(ctx, c.Text)
	if err != nil {
		return err
	}
	ids := t.Encode(text)
	if c.Special {
		ids = t.EncodeSpecial(text)
	}
	if c.JSON {
		if ids == nil {
			ids = []int32{}
		}
		return json.NewEncoder(o.out).Encode(map[string]any{"tokens": ids})
	}
	for _, id := range ids {
		fmt.Fprintf(o.out, "%6d  %q\n", id, t.Decode([]int32{id}))
	}
	return check(fmt.Fprintf(o.out, "%d tokens, %d bytes\n", len(ids), len(text)))
}

type modelLogprobsCmd struct {
	modelFlag
	In     string `default:"-" help:"JSON lines {\"tokens\": […]}; - is standard input."`
	Tokens int    `name:"batch-tokens" default:"8192" help:"Tokens scored at once."`
	computeFlags
}

func (c *modelLogprobsCmd) Run(ctx context.Context, o output) error {
	var options model.Options
	if err := c.apply(&options); err != nil {
		return err
	}
	in, err := openInput(ctx, c.In)
	if err != nil {
		return err
	}
	defer in.Close()
	p, err := model.Load(c.Model, options)
	if err != nil {
		return err
	}
	defer p.Close()
	out := json.NewEncoder(o.out)
	var tokens []int32
	offsets := []int{0}
	flush := func() error {
		if len(offsets) == 1 {
			return nil
		}
		all, err := p.Logprobs(ctx, tokens, offsets)
		if err != nil {
			return err
		}
		for s := 1; s < len(offsets); s++ {
			lp := []float64{}
			if from := offsets[s-1]; from < offsets[s] {
				lp = append(lp, all[from+1:offsets[s]]...)
			}
			if err := out.Encode(map[string]any{"logprobs": lp}); err != nil {
				return err
			}
		}
		tokens, offsets = nil, []int{0}
		return nil
	}
	err = eachLine(in, func(n int, line []byte) error {
		var item struct {
			Tokens []int32 `json:"tokens"`
		}
		if err := strictJSON(line, &item); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		for i, id := range item.Tokens {
			if id < 0 || int(id) >= p.Config().VocabSize {
				return fmt.Errorf("line %d: token %d at position %d is outside the vocabulary of %d", n, id, i, p.Config().VocabSize)
			}
		}
		if len(item.Tokens) == 0 {
			return fmt.Errorf("line %d: no tokens; want {\"tokens\": […]}", n)
		}
		if len(tokens)+len(item.Tokens) > c.Tokens {
			if err := flush(); err != nil {
				return err
			}
		}
		tokens = append(tokens, item.Tokens...)
		offsets = append(offsets, len(tokens))
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

type modelGenerateCmd struct {
	modelFlag
	jsonFlag
	Prompt      string   `arg:"" optional:"" help:"The prompt; standard input when absent."`
	Raw         bool     `help:"Continue the text as it is, instead of answering it as a chat."`
	MaxTokens   int      `default:"256" help:"Most new tokens."`
	Temperature float64  `default:"1" help:"0 takes the most probable token."`
	TopP        float64  `default:"1" help:"Smallest set of tokens that reaches this probability."`
	TopK        int      `help:"The K most probable tokens; 0 for all."`
	Seed        uint64   `default:"1" help:"Seed of the draws."`
	Stop        []string `help:"Strings that end the text." sep:"none"`
	computeFlags
}

func (c *modelGenerateCmd) Run(ctx context.Context, o output) error {
	var options model.Options
	if err := c.apply(&options); err != nil {
		return err
	}
	p, err := openPolicy(c.Model, options)
	if err != nil {
		return err
	}
	defer p.Close()
	g, err := p.newGenerator(policyConfig{})
	if err != nil {
		return err
	}
	defer g.Close()
	text, err := textOrInput(ctx, c.Prompt)
	if err != nil {
		return err
	}
	req := gen.Request{
		ID: "generate", Seed: c.Seed, MaxTokens: c.MaxTokens, StopStrings: c.Stop,
		Sampling: gen.Sampling{Temperature: c.Temperature, TopP: c.TopP, TopK: c.TopK},
	}
	if c.Raw {
		req.Tokens = p.tokenizer.EncodeSpecial(text)
	} else {
		chat, err := token.NewChat(p.tokenizer)
		if err != nil {
			return fmt.Errorf("%w; use --raw to continue plain text", err)
		}
		req.Tokens, req.StopTokens = chat.Prompt([]token.Message{{Role: token.User, Content: text}}), chat.StopTokens()
	}
	done, err := g.Generate(ctx, req)
	if err = errors.Join(err, context.Cause(ctx)); err != nil {
		return err
	}
	answer := p.tokenizer.Decode(done.Tokens)
	if c.JSON {
		return printJSON(o.out, map[string]any{"text": answer, "tokens": done.Tokens, "logprobs": done.Logprobs, "finish": done.Finish})
	}
	return check(fmt.Fprintln(o.out, ui.PrintableText(answer)))
}

// openInput opens a file, or standard input for "-", whose reading ends with ctx.
func openInput(ctx context.Context, path string) (io.ReadCloser, error) {
	if path != "-" {
		return os.Open(path)
	}
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, err := io.Copy(w, os.Stdin)
		w.CloseWithError(err)
	}()
	return r, nil
}

// textOrInput is the text, or standard input where it is empty.
func textOrInput(ctx context.Context, text string) (string, error) {
	if text != "" {
		return text, nil
	}
	in, err := openInput(ctx, "-")
	if err != nil {
		return "", err
	}
	defer in.Close()
	data, err := io.ReadAll(in)
	return string(data), err
}

// eachLine calls f with every line that is not blank and its number.
func eachLine(r io.Reader, f func(n int, line []byte) error) error {
	b := bufio.NewReaderSize(r, 1<<20)
	for n := 1; ; n++ {
		line, err := b.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			if err := f(n, line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
