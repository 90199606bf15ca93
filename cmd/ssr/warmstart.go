package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/rollout/selfplay"
)

type warmstartCmd struct {
	Repo     string   `required:"" type:"existingdir" help:"The repository to play in."`
	Out      string   `required:"" type:"path" help:"The folder to write: OUT/model, OUT/bugs, OUT/episodes.jsonl."`
	Bugs     int      `default:"200" help:"Scripted bugs to make, each with a scripted repair."`
	HeldOut  []string `type:"existingdir" sep:"none" placeholder:"DIR" help:"A folder of bugs that must not be made: they are for evaluation. May be repeated."`
	Episodes string   `type:"existingfile" placeholder:"FILE" help:"Learn from these episodes (an earlier OUT/episodes.jsonl) instead of playing new ones."`
	BugOnly  bool     `name:"bugs-only" help:"Make the bugs and stop: for a held-out set, with a seed of its own."`
	Recipe   string   `type:"existingfile" placeholder:"FILE" help:"How the repository's functions and tests are written and run, for scripted players; needed unless it is Python with unittest. See examples/recipes."`
	Strategy string   `enum:"removal,history,both" default:"both" help:"How the scripted bugs are made: removal, history, or both as far as the history goes. A held-out set of both leaves a short history nothing to learn from."`
	Careful  float64  `default:"0.6" help:"Share of the scripted players that test their work before they submit it, and mend it."`
	Slip     float64  `default:"0.4" help:"Probability that a command of a careful player goes wrong, so that there is something to mend. Such turns are not imitated."`
	Shy      float64  `default:"0.75" help:"Share of the careful players whose testing is not imitated, only what they make of it; more leaves self-play more to learn."`
	Share    float64  `default:"1" help:"Share of the solvers' episodes to learn from; less leaves self-play more to learn."`
	Text     bool     `default:"true" negatable:"" help:"Learn the repository's text and what tools show, not the policy's turns alone."`
	Drills   int      `default:"300" help:"Examples of random text to copy; see docs/log.md."`
	Targets  bool     `default:"true" negatable:"" help:"Tell injectors what to aim at, as game.seeding does."`
	Turns    int      `default:"16" help:"Turns that feedback counts down from: episodes.limits.turns of the game that is to follow."`
	Prompts  string   `default:"brief" enum:"full,brief" help:"The set of prompts: full or brief."`

	Vocab        int    `default:"2048" help:"Ids of the tokenizer."`
	Hidden       int    `default:"192" help:"Width of the model."`
	Intermediate int    `default:"512" help:"Width of its MLP."`
	Layers       int    `default:"4" help:"Layers."`
	Heads        int    `default:"6" help:"Query heads."`
	KVHeads      int    `name:"kv-heads" default:"2" help:"Key-value heads."`
	Context      int    `default:"4096" help:"Context window in tokens."`
	Stored       string `name:"save-dtype" default:"float32" enum:"float32,bfloat16" help:"How to store the weights: float32 or bfloat16."`

	Until float64 `default:"1" help:"Stop after an epoch in which this share of sampled turns are well-formed tool calls; above 1: never."`
	sftFlags
	InFlight int `default:"8" help:"Episodes at once."`
	sandboxFlags
	requirementFlags
	jsonFlag
}

func (c *warmstartCmd) Run(ctx context.Context, o output) (err error) {
	made := c.Episodes == "" && exists(filepath.Join(c.Out, bugsDir)) && !exists(filepath.Join(c.Out, playedName))
	if made || exists(filepath.Join(c.Out, modelDir)) {
		return fmt.Errorf("%s holds a warm start already; choose another folder", c.Out)
	}
	if !c.BugOnly {
		if err := c.check(); err != nil {
			return err
		}
	}
	w, err := openWorld(ctx, c.Repo, c.config())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if c.Episodes == "" {
		c.Episodes = filepath.Join(c.Out, "episodes.jsonl")
		if err := c.record(ctx, o, w); err != nil {
			return err
		}
	}
	if c.BugOnly {
		return nil
	}
	episodes, err := readEpisodes(c.Episodes)
	if err != nil {
		return err
	}
	err = c.teach(ctx, o, w.repo, episodes)
	if err != nil {
		fmt.Fprintf(o.err, "the episodes are kept; go on with the same command and --episodes %s\n", c.Episodes)
	}
	return err
}

// check refuses what teach would, before there is anything to teach: a shape that no
// model has, and settings that nothing is trained with.
func (c *warmstartCmd) check() error {
	t, err := c.tokenizer(nil)
	if err != nil {
		return err
	}
	chat, err := token.NewChat(t)
	if err != nil {
		return err
	}
	return errors.Join(in("model", c.shape(t, chat).Validate()), in("sft", c.settings().Check()), oneProcess())
}

// reportLost says what became of plans that gave no bug, most of them first.
func reportLost(o output, all map[string]selfplay.Lost) {
	outcomes := slices.Sorted(maps.Keys(all))
	slices.SortStableFunc(outcomes, func(a, b string) int { return all[b].Plans - all[a].Plans })
	for _, outcome := range outcomes {
		fmt.Fprintf(o.err, "  without a bug, %s: %d\n", outcome, all[outcome].Plans)
		if why := all[outcome].Why; why != "" {
			fmt.Fprintf(o.err, "    the first: %s\n", strings.ReplaceAll(why, "\n", "\n    "))
		}
	}
}

// record has the scripted players play, and writes their bugs and episodes.
func (c *warmstartCmd) record(ctx context.Context, o output, w *world) error {
	began := time.Now()
	log, err := c.openPlayed(w.repo)
	if err != nil {
		return err
	}
	if n := len(log.episodes); n > 0 {
		fmt.Fprintf(o.err, "going on with %d scripted episodes that were played before\n", n)
	}
	warm, err := c.play(ctx, o, w, log)
	if err = errors.Join(err, log.Close()); err != nil {
		if exists(log.path) {
			fmt.Fprintln(o.err, "the scripted episodes are kept; go on with the same command")
		}
		return err
	}
	if len(warm.Bugs) == 0 {
		return errors.Join(errors.New("the scripted players made no valid bug; what ended their plans is listed above. Every test must pass in a sandbox, each time: try them with ssr sandbox exec, and with ssr env check for flaky ones"), log.remove())
	}
	if err := c.keep(warm); err != nil {
		return err
	}
	if err := log.remove(); err != nil {
		return err
	}
	fmt.Fprintf(o.err, "%d scripted bugs and repairs, %.0f s\n", len(warm.Bugs), time.Since(began).Seconds())
	if !c.BugOnly {
		return nil
	}
	bugs := filepath.Join(c.Out, bugsDir)
	if c.JSON {
		return printJSON(o.out, map[string]any{"bugs": bugs, "count": len(warm.Bugs)})
	}
	return check(fmt.Fprintln(o.out, bugs))
}

// play has the scripted players make bugs and repair them.
func (c *warmstartCmd) play(ctx context.Context, o output, w *world, log *playedLog) (*selfplay.Warm, error) {
	conf := defaultConfig()
	conf.Run, conf.Episodes.Prompts, conf.Sandbox = c.Out, c.Prompts, c.config()
	env, err := conf.envOptions(w.backend)
	if err != nil {
		return nil, err
	}
	exclude, err := heldOut(c.HeldOut)
	if err != nil {
		return nil, err
	}
	recipe, err := readRecipe(c.Recipe)
	if err != nil {
		return nil, err
	}
	var strategies map[selfplay.Strategy]float64 // nil: both, evenly
	if c.Strategy != "both" {
		strategies = map[selfplay.Strategy]float64{selfplay.Strategy(c.Strategy): 1}
	}
	warm, err := selfplay.Warmstart(ctx, w.repo, selfplay.NewValidator(w.backend, w.repo, conf.validation()), selfplay.WarmstartOptions{
		Recipe: recipe, Bugs: c.Bugs, Seed: c.Seed, Strategies: strategies, Exclude: exclude, Targets: c.Targets, Requirements: c.requirements(), Env: env, Turns: c.Turns, InFlight: c.InFlight,
		Careful: c.Careful, Slip: c.Slip, Shy: c.Shy, Keep: log.keep, Played: log.episodes,
		Progress: func(sofar *selfplay.Warm, tried, plans int) {
			fmt.Fprintf(o.err, "scripted episodes: %d bugs kept, %d of %d plans tried\n", len(sofar.Bugs), tried, plans)
			if len(sofar.Bugs) == 0 {
				reportLost(o, sofar.Lost) // before many more end alike
			}
		},
	})
	if errors.Is(err, selfplay.ErrNoRecipe) {
		err = fmt.Errorf("%w; give --recipe FILE, as in examples/recipes", err)
	}
	return warm, err
}

// readRecipe reads a file that describes a repository's code and tests; "" is nil, the
// built-in one.
func readRecipe(path string) (*selfplay.Recipe, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r selfplay.Recipe
	if err := loadStrict(document{path, data}, &r); err != nil {
		return nil, fmt.Errorf("recipe %w", err)
	}
	return &r, nil
}

// heldOut are the patch-ids of some folders' injections.
func heldOut(dirs []string) (map[string]bool, error) {
	ids := map[string]bool{}
	for _, dir := range dirs {
		bugs, _, err := loadBugs(dir)
		if err != nil {
			return nil, err
		}
		for _, b := range bugs {
			p, err := selfplay.ParsePatch(b.Artifact.BugInject)
			if err != nil {
				return nil, fmt.Errorf("held-out bug %s: %w", b.ID, err)
			}
			ids[p.ID()] = true
		}
	}
	return ids, nil
}

// keep writes the bugs and the episodes.
func (c *warmstartCmd) keep(warm *selfplay.Warm) error {
	pool, err := selfplay.OpenPool(filepath.Join(c.Out, bugsDir))
	if err == nil {
		err = pool.Clean()
	}
	if err != nil {
		return err
	}
	for _, b := range warm.Bugs {
		if _, _, err := pool.Add(b.Artifact, b.Report); err != nil {
			return err
		}
	}
	return atomicfile.Write(c.Episodes, func(w io.Writer) error {
		e := json.NewEncoder(w)
		for i := range warm.Injections {
			for _, t := range []*rollout.Trajectory{warm.Injections[i], warm.Solutions[i]} {
				if err := e.Encode(episodeOf(t, warm.Skipped[t.ID])); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// episodeOf writes a trajectory as ssr sft reads it.
func episodeOf(t *rollout.Trajectory, skip []int) episode {
	e := episode{Role: t.Role, Messages: slices.Clone(t.Messages), Skip: skip}
	for i, turn := range t.Turns {
		e.Messages = append(e.Messages, token.Message{Role: token.Assistant, Content: turn.Text})
		if i+1 < len(t.Turns) {
			e.Messages = append(e.Messages, token.Message{Role: token.User, Content: turn.Observation})
		}
	}
	return e
}

func readEpisodes(path string) (all []episode, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	err = eachLine(f, func(n int, line []byte) error {
		var e episode
		if err := strictJSON(line, &e); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
		all = append(all, e)
		return nil
	})
	return all, err
}

// teach trains a tokenizer and a fresh policy on the episodes.
func (c *warmstartCmd) teach(ctx context.Context, o output, repo *selfplay.Repo, episodes []episode) error {
	corpus, err := readTexts(repo)
	if err != nil {
		return err
	}
	for _, e := range episodes {
		for _, m := range e.Messages {
			corpus = append(corpus, m.Role+"\n"+m.Content)
		}
	}
	t, err := c.tokenizer(corpus)
	if err != nil {
		return err
	}
	chat, err := token.NewChat(t)
	if err != nil {
		return err
	}
	examples, longest, err := c.examples(t, episodes, false)
	if err != nil {
		return err
	}
	if longest > c.Context {
		return fmt.Errorf("the longest scripted episode has %d tokens, more than --context %d", longest, c.Context)
	}
	var options model.Options
	if err := c.apply(&options); err != nil {
		return err
	}
	p, err := model.New(c.shape(t, chat), c.Seed, options)
	if err != nil {
		return err
	}
	defer p.Close()
	fmt.Fprintf(o.err, "%d episodes to learn from, the longest of %s tokens\n", len(examples), ui.Thousands(longest))
	pol := &policy{Policy: p, tokenizer: t}
	g, err := pol.newGenerator(policyConfig{})
	if err != nil {
		return err
	}
	defer g.Close()
	opts := train.SFTOptions{SFTSettings: c.settings(), Dir: filepath.Join(c.Out, "sft"), Seed: c.Seed, Resume: true} // where it was interrupted
	lessons, err := c.lessons(t, repo, episodes)
	if err != nil {
		return err
	}
	sum, err := pol.fit(ctx, o, opts, lessons, func(ctx context.Context, epoch int) (string, bool, error) {
		spoken, err := speaks(ctx, g, chat, examples, c.Seed, epoch)
		return fmt.Sprintf("epoch %d: %.0f%% of turns are well-formed calls", epoch, 100*spoken), spoken >= c.Until, err
	})
	if err != nil {
		return err
	}
	d, err := dtype(c.Stored)
	if err != nil {
		return err
	}
	// A folder of that name holds a whole model: it says that the warm start is done.
	out := filepath.Join(c.Out, modelDir)
	aside := out + ".part"
	if err := errors.Join(os.RemoveAll(aside), pol.save(aside, d)); err != nil {
		return err
	}
	if err := os.Rename(aside, out); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o.out, map[string]any{"model": out, "bugs": filepath.Join(c.Out, bugsDir), "episodes": len(examples), "updates": sum.Steps})
	}
	seeding := ""
	if c.Targets {
		seeding = " --set game.seeding=true"
		if c.Recipe != "" {
			seeding += " --set game.recipe=" + c.Recipe
		}
	}
	fmt.Fprintf(o.err, "go on with: ssr train --repo %s --model %s --run DIR --set episodes.prompts=%s --set episodes.limits.turns=%d%s\n",
		c.Repo, out, c.Prompts, c.Turns, seeding)
	return check(fmt.Fprintf(o.out, "model: %s\n", out))
}

// speaks samples a turn at every place where the first examples have one of the
// policy's, and returns the share that are well-formed calls.
func speaks(ctx context.Context, g *generator, chat *token.Chat, examples []train.Example, seed uint64, epoch int) (float64, error) {
	const episodes, longest = 24, 512
	var spoken, turns atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for i, e := range examples[:min(episodes, len(examples))] {
		for at := 1; at < len(e.Tokens); at++ {
			if !e.Trained[at] || e.Trained[at-1] {
				continue
			}
			group.Go(func() error {
				id := fmt.Sprintf("epoch%d-%d-%d", epoch, i, at)
				defer g.Release(id)
				done, err := g.Generate(ctx, gen.Request{
					ID: id, Seed: seed, Tokens: e.Tokens[:at], MaxTokens: longest, Sampling: gen.Sampling{Temperature: 1},
					StopTokens: chat.StopTokens(), StopStrings: token.Plain.StopStrings(),
				})
				turns.Add(1)
				if _, bad := token.Plain.ParseCall(chat.Text(done.Tokens)); err == nil && bad == nil {
					spoken.Add(1)
				}
				return err
			})
		}
	}
	err := group.Wait()
	return float64(spoken.Load()) / float64(max(1, turns.Load())), err
}

// shape is a Qwen2 of the given size.
func (c *warmstartCmd) shape(t *token.Tokenizer, chat *token.Chat) model.Config {
	return model.Config{
		ModelType: "qwen2", VocabSize: t.VocabSize(), Hidden: c.Hidden, Intermediate: c.Intermediate, Layers: c.Layers,
		Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.Hidden / max(1, c.Heads), MaxPositions: c.Context,
		NormEps: 1e-6, RopeTheta: 10000, TieEmbeddings: true, InitStd: 0.02, BOS: -1, EOS: chat.StopTokens()[:1],
	}
}

// lessons are what the policy learns from: the episodes, the repository's text,
// and drills.
func (c *warmstartCmd) lessons(t *token.Tokenizer, repo *selfplay.Repo, episodes []episode) ([]train.Example, error) {
	all, _, err := c.examples(t, episodes, c.Text)
	if err != nil {
		return nil, err
	}
	all = append(all, train.CopyDrills(c.Drills, t.VocabSize(), c.Seed)...)
	if !c.Text {
		return all, nil
	}
	texts, err := readTexts(repo)
	for _, text := range texts {
		all = append(all, train.Pieces(t.Encode(text), pieceTokens)...)
	}
	return all, err
}

// pieceTokens is about the length of an episode.
const pieceTokens = 600

// readTexts reads the repository's text files.
func readTexts(repo *selfplay.Repo) (texts []string, err error) {
	for _, name := range repo.Files() {
		data, err := repo.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if utf8.Valid(data) && !bytes.ContainsRune(data, 0) {
			texts = append(texts, string(data))
		}
	}
	return texts, nil
}

// tokenizer is trained on texts.
func (c *warmstartCmd) tokenizer(corpus []string) (*token.Tokenizer, error) {
	return token.Train(corpus, token.TrainOptions{VocabSize: c.Vocab, Specials: token.ChatMLSpecials})
}

// examples renders the episodes, and of the solvers' only the wanted share; whole
// is for episode.example.
func (c *warmstartCmd) examples(t *token.Tokenizer, episodes []episode, whole bool) (all []train.Example, longest int, err error) {
	left := 0
	for _, e := range episodes {
		if e.Role == rollout.Solver {
			left++
		}
	}
	left = int(c.Share*float64(left) + 0.5)
	for i, e := range episodes {
		if e.Role == rollout.Solver {
			if left--; left < 0 {
				continue
			}
		}
		x, err := e.example(t, whole)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: episode %d: %w", c.Episodes, i+1, err)
		}
		all = append(all, x)
		longest = max(longest, len(x.Tokens))
	}
	return all, longest, nil
}
