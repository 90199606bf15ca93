package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/engine"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/learner"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/rollout/selfplay"
	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/local"
)

// Job says what to train, and on what.
type Job struct {
	Repo  string `json:"repo"`
	Model string `json:"model"`
	Steps int    `json:"steps"`
	Seed  uint64 `json:"seed"`
}

// Train plays Job in dir, whose run it goes on with where there is one, and
// tells follow about its progress.
func Train(ctx context.Context, job Job, dir string, follow func(train.Event)) (sum train.Summary, err error) {
	// The policy, and an engine that generates with it.
	options := model.Options{}
	policy, err := model.Load(job.Model, options)
	if err != nil {
		return sum, err
	}
	defer policy.Close()
	tokenizer, err := token.Load(job.Model)
	if err != nil {
		return sum, err
	}
	chat, err := token.NewChat(tokenizer)
	if err != nil {
		return sum, err
	}
	generator, err := engine.New(policy, engine.Options{Decoder: tokenizer})
	if err != nil {
		return sum, err
	}
	defer generator.Close()

	// The repository, and sandboxes to play in.
	backend, err := local.New(local.Options{})
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	repo, err := selfplay.OpenRepo(ctx, job.Repo)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return sum, err
	}
	pool, err := selfplay.OpenPool(filepath.Join(dir, "bugs"))
	if err != nil {
		return sum, err
	}

	// Who plays, and by which rules.
	window := policy.Config().MaxPositions
	player := rollout.Player{
		Policy: generator, Chat: chat, Seed: job.Seed,
		Sampling:    gen.Sampling{Temperature: 1},
		Limits:      rollout.Limits{Turns: 16, Context: window, TurnTokens: window / 4, ObservationTokens: window / 4},
		StopStrings: token.Plain.StopStrings(),
	}
	env, err := environment(backend)
	if err != nil {
		return sum, err
	}
	played, err := selfplay.NewGame(rollout.NewRunner(player, 8), selfplay.GameOptions{
		Seed: job.Seed, Env: env, Requirements: selfplay.DefaultRequirements,
		Repos:          []selfplay.GameRepo{{Name: "repo", Repo: repo, Pool: pool}},
		InjectorGroups: 1, InjectorsPerPrompt: 4, SolversPerBug: 4,
	})
	if err != nil {
		return sum, fmt.Errorf("set up the game: %w", err)
	}

	// How to learn from it.
	settings := train.DefaultSettings()
	settings.Steps = job.Steps
	settings.Loss.Length = window
	settings.Optimizer.LR = 1e-4
	settings.Schedule.Warmup = 0
	return train.Train(ctx, train.Options{
		Settings: settings, Dir: dir, Seed: job.Seed, Resume: true, OnEvent: follow,
	}, learner.New(policy, tokenizer), game{played})
}

func environment(backend sandbox.Backend) (selfplay.EnvOptions, error) {
	prompts, err := selfplay.LoadPrompts("brief", "")
	return selfplay.EnvOptions{Backend: backend, Prompts: prompts, Protocol: token.Plain}, err
}

// game is a selfplay.Game as the loop wants it. A service with a task of its own
// implements train.Game instead: Play lets the policy act and gives rewards.
type game struct{ *selfplay.Game }

func (g game) Play(ctx context.Context, step int, done []train.Finished, finish func(train.Finished) error) error {
	groups := make([]*rollout.Group, len(done))
	for i, f := range done {
		groups[i] = f.Group
	}
	return g.Game.Play(ctx, step, groups, func(group *rollout.Group, counts map[string]float64) error {
		return finish(train.Finished{Group: group, Counts: counts})
	})
}
