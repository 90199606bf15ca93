package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/rollout/remote"
	"github.com/ssr-go/ssr/rollout/selfplay"
	"github.com/ssr-go/ssr/sandbox"
)

// setup is everything that stands ready to play: a repository, its sandboxes,
// a policy that generates.
type setup struct {
	*world
	conf      config
	policy    *policy // nil where it is on a server
	generator *generator
	chat      rollout.Chat
	runner    *rollout.Runner
	env       selfplay.EnvOptions
	validator *selfplay.Validator
}

// openSetup loads the policy in dir, or reaches the one on a server, and opens the
// repository of conf, whose limits are fitted to the model. Other processes, where there
// are any, generate beside this one. The caller closes it.
func openSetup(ctx context.Context, conf config, dir string, ps *processes) (t *setup, err error) {
	t = &setup{conf: conf}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if isURL(dir) {
		p, err := remote.New(ctx, remote.Options{URL: dir, Model: conf.Policy.Remote, Key: os.Getenv(keyVariable)})
		if err != nil {
			return t, err
		}
		t.chat, t.generator = rollout.ByteChat{}, &generator{source: elsewhere{p}, live: map[string]bool{}}
	} else if err := t.openLocal(dir, ps); err != nil {
		if dir != conf.Model {
			err = fmt.Errorf("%w; without the folder %s the run goes on from the checkpoint before it", err, filepath.Dir(dir))
		}
		return t, err
	}
	if t.world, err = openWorld(ctx, conf.Repo, conf.Sandbox); err != nil {
		return t, err
	}
	if _, err = t.backend.Sweep(ctx); err != nil {
		return t, fmt.Errorf("sweep what dead trainers left: %w", err)
	}
	if t.env, err = conf.envOptions(t.backend); err != nil {
		return t, err
	}
	t.runner = rollout.NewRunner(rollout.Player{
		Policy: t.generator, Chat: t.chat, Limits: conf.Episodes.Limits, Sampling: conf.Episodes.sampling(),
		Seed: conf.Seed, StopStrings: t.env.Protocol.StopStrings(),
	}, conf.Episodes.InFlight)
	t.runner.Deadline, t.runner.Retries = conf.Episodes.Deadline, conf.Episodes.Retries
	t.validator = selfplay.NewValidator(t.backend, t.repo, conf.validation())
	return t, nil
}

// keyVariable is the environment's variable with the key of a server's API.
const keyVariable = "OPENAI_API_KEY"

// isURL says whether a model is on a server.
func isURL(model string) bool {
	return strings.HasPrefix(model, "http://") || strings.HasPrefix(model, "https://")
}

func (t *setup) openLocal(dir string, ps *processes) error {
	var err error
	if t.policy, err = openReplicas(dir, t.conf.Policy, ps); err != nil {
		return err
	}
	chat, err := token.NewChat(t.policy.tokenizer)
	if err != nil {
		return err
	}
	t.chat = chat
	t.generator, err = t.policy.newGenerator(t.conf.Policy, ps.policies()...)
	return err
}

// version of the weights; 0 where they are on a server.
func (t *setup) version() int64 {
	if t.policy == nil {
		return 0
	}
	return t.policy.Version()
}

// Close frees what was opened, the last first.
func (t *setup) Close() error {
	var err error
	if t.world != nil {
		err = t.world.Close()
	}
	if t.generator != nil {
		t.generator.Close()
	}
	if t.policy != nil {
		t.policy.Close()
	}
	return err
}

// envOptions shape the episodes.
func (c config) envOptions(backend sandbox.Backend) (selfplay.EnvOptions, error) {
	prompts, err := selfplay.LoadPrompts(c.Episodes.Prompts, c.Episodes.PromptsDir)
	if err != nil {
		return selfplay.EnvOptions{}, err
	}
	protocol, err := token.ProtocolNamed(c.Episodes.Protocol)
	if err != nil {
		return selfplay.EnvOptions{}, fmt.Errorf("episodes.protocol: %w", err)
	}
	limits := c.Sandbox.limits()
	limits.Command = c.Episodes.CommandTimeout
	limits.Lifetime = c.Episodes.Deadline
	return selfplay.EnvOptions{
		Backend: backend, Limits: limits, Prompts: prompts, Protocol: protocol, Submissions: c.Episodes.Submissions,
	}, nil
}

func (c config) validation() selfplay.Options {
	return selfplay.Options{
		Timeout: c.Game.ScriptTimeout, Parallel: c.Game.Validators, ReuseOriginal: true,
		Limits: c.Sandbox.limits(), Owner: filepath.Base(c.Run),
	}
}

// fit bounds the episodes by what the model can read.
func (c *config) fit(window int) {
	l := &c.Episodes.Limits
	if l.Context <= 0 || l.Context > window {
		if c.Train.Loss.Length == l.Context {
			c.Train.Loss.Length = window
		}
		l.Context = window
	}
	if l.ObservationTokens <= 0 || l.ObservationTokens > l.Context/4 {
		l.ObservationTokens = l.Context / 4
	}
}

// game sets up the game of a run over the pool of bugs in a folder, which is made last:
// what is refused leaves none.
func (t *setup) game(ctx context.Context, bugs string) (_ *selfplay.Game, err error) {
	g := t.conf.Game
	repo := selfplay.GameRepo{Name: filepath.Base(t.conf.Repo), Repo: t.repo}
	if g.Seeding {
		recipe, err := readRecipe(g.Recipe)
		if recipe == nil && err == nil {
			var found selfplay.Recipe
			found, err = selfplay.FindRecipe(t.repo.Files())
			recipe = &found
		}
		if errors.Is(err, selfplay.ErrNoRecipe) {
			err = fmt.Errorf("%w; give game.recipe a file, as in examples/recipes, or set game.seeding to false", err)
		}
		if err != nil {
			return nil, fmt.Errorf("game.seeding: %w", err)
		}
		planner, err := selfplay.NewPlanner(ctx, t.backend, t.repo, *recipe)
		if err != nil {
			return nil, fmt.Errorf("game.seeding: %w", err)
		}
		repo.Targets = planner.Targets()
	}
	if repo.Pool, err = selfplay.OpenPool(bugs); err != nil {
		return nil, err
	}
	options := t.conf.gameOptions()
	options.Repos, options.Env = []selfplay.GameRepo{repo}, t.env
	return selfplay.NewGame(t.runner, options)
}

// gameOptions are those of the configuration, without what has to be opened.
func (c config) gameOptions() selfplay.GameOptions {
	g := c.Game
	return selfplay.GameOptions{
		Mode: g.Mode, Seed: c.Seed, Validation: c.validation(), Requirements: g.Requirements, RequirementsMax: g.RequirementsMax,
		InjectorGroups: g.InjectorGroups, InjectorsPerPrompt: g.InjectorsPerPrompt, SolversPerBug: g.SolversPerBug,
		MaxSolverGroups: g.MaxSolverGroups, SolverGroups: g.SolverGroups, Resample: g.Resample, SecondOrderFraction: g.SecondOrderFraction,
		Strategies: g.Strategies, Signal: g.Signal, Alpha: g.Alpha,
	}
}

// trainGame is a selfplay.Game as the loop wants it.
type trainGame struct{ *selfplay.Game }

var _ train.Game = trainGame{}

func (g trainGame) Play(ctx context.Context, step int, done []train.Finished, finish func(train.Finished) error) error {
	groups := make([]*rollout.Group, len(done))
	for i, f := range done {
		groups[i] = f.Group
	}
	return g.Game.Play(ctx, step, groups, func(group *rollout.Group, counts map[string]float64) error {
		return finish(train.Finished{Group: group, Counts: counts})
	})
}
