package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/learner"
	"github.com/ssr-go/ssr/rollout/selfplay"
)

type trainCmd struct {
	Config string `type:"existingfile" help:"Configuration in YAML; see ssr config default."`
	Repo   string `type:"existingdir" help:"The repository to play in."`
	Model  string `type:"existingdir" help:"The policy to start from."`
	environmentFlag
	RunDir string   `name:"run" type:"path" help:"The folder to write; it must not hold a run yet."`
	Resume string   `type:"existingdir" placeholder:"RUN" help:"Go on with a run, by its own configuration."`
	Steps  *int     `help:"Training steps of the whole run."`
	Seed   *uint64  `help:"Seed of every draw."`
	Set    []string `help:"Override a field of the configuration." placeholder:"KEY.KEY=VALUE" sep:"none"`
	// Processes that a launcher starts (docs/parallel.md).
	PeerTimeout time.Duration `default:"30m" help:"How long processes that train together wait for one of them."`
	jsonFlag
}

const configName = "config.yaml"

func (c *trainCmd) Run(ctx context.Context, o output) error {
	ps, err := joinProcesses(ctx, c.PeerTimeout)
	if err != nil {
		return err
	}
	if ps == nil {
		return c.lead(ctx, o, nil)
	}
	defer ps.group.Close()
	if ps.Rank > 0 {
		err = ps.follow(ctx, o)
	} else {
		err = c.lead(ctx, o, ps)
	}
	if err != nil {
		return ps.group.Fail(err)
	}
	return nil
}

// lead is the run, of this process alone or of several that it leads.
func (c *trainCmd) lead(ctx context.Context, o output, ps *processes) error {
	conf, err := c.config()
	if err != nil {
		return err
	}
	summary, err := c.train(ctx, o, conf, ps)
	if err != nil {
		full := errors.Is(err, syscall.ENOSPC)
		// Of several processes it is mostly another that has gone, known or not yet.
		if (ctx.Err() != nil || ps != nil || full) && exists(filepath.Join(conf.Run, configName)) {
			room := map[bool]string{true: "make room, and "}[full]
			fmt.Fprintf(o.err, "%sgo on with: ssr train --resume %s\n", room, conf.Run)
		}
		return err
	}
	metrics, err := ui.ReadMetrics(filepath.Join(conf.Run, "metrics.jsonl"))
	if err != nil {
		return err
	}
	curves := filepath.Join(conf.Run, "curves.svg")
	if err := drawCurves(curves, filepath.Base(conf.Run), metrics); err != nil {
		return err
	}
	evaluations, err := readEvaluations(filepath.Join(conf.Run, evalName))
	if err != nil {
		return err
	}
	weights := train.Weights(summary.Checkpoint)
	if c.JSON {
		return printJSON(o.out, map[string]any{
			"run": conf.Run, "steps": summary.Steps, "version": summary.Version, "skipped_updates": summary.Skipped,
			"weights": weights, "curves": curves, "evaluations": evaluations,
		})
	}
	fmt.Fprintln(o.out)
	ui.Summary(o.out, metrics)
	for _, e := range evaluations {
		fmt.Fprintf(o.out, "measured after step %d: %s\n", e.Step, e)
	}
	return check(fmt.Fprintf(o.out, "weights: %s\ncurves:  %s\n", weights, curves))
}

// config resolves what to run: a resumed run's own configuration, or the file
// and the flags over the defaults.
func (c *trainCmd) config() (config, error) {
	if c.Resume != "" {
		if c.Config != "" || c.Repo != "" || c.Model != "" || c.Environment != "" || c.RunDir != "" || c.Seed != nil {
			return config{}, errors.New("--resume goes on with a run as it is; only --steps and --set can be given with it")
		}
		conf, err := readConfig(filepath.Join(c.Resume, configName), c.Set)
		if errors.Is(err, fs.ErrNotExist) {
			return conf, fmt.Errorf("%s holds no run: %w", c.Resume, err)
		}
		if err != nil {
			return conf, err
		}
		if conf.Run, err = filepath.Abs(c.Resume); err != nil { // the folder may have been moved
			return conf, err
		}
		if c.Steps != nil {
			conf.Train.Steps = *c.Steps
		}
		return conf, refuse(conf.check(), conf.checkBugs())
	}
	conf, err := readConfig(c.Config, c.Set)
	if err != nil {
		return conf, err
	}
	for _, f := range []struct {
		flag string
		to   *string
	}{{c.Repo, &conf.Repo}, {c.Model, &conf.Model}, {c.Environment, &conf.Sandbox.Environment}, {c.RunDir, &conf.Run}} {
		if f.flag != "" {
			*f.to = f.flag
		}
	}
	if c.Steps != nil {
		conf.Train.Steps = *c.Steps
	}
	if c.Seed != nil {
		conf.Seed = *c.Seed
	}
	if err := errors.Join(conf.absolute(), refuse(conf.checkPaths(), conf.check(), conf.checkBugs())); err != nil {
		return conf, err
	}
	if exists(filepath.Join(conf.Run, configName)) {
		return conf, fmt.Errorf("%s already holds a run: go on with --resume %s, or choose another folder", conf.Run, conf.Run)
	}
	if isURL(conf.Model) {
		return conf, fmt.Errorf("model: %s cannot be trained from here; ssr eval lets it play", conf.Model)
	}
	shape, err := model.ReadConfig(conf.Model)
	if err != nil {
		return conf, err
	}
	conf.fit(shape.MaxPositions)
	return conf, nil
}

// write keeps the resolved configuration in the run's folder.
func (c config) write() error {
	data, err := c.marshal()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Run, 0o755); err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(c.Run, configName), data)
}

// train plays and learns to the end.
func (c *trainCmd) train(ctx context.Context, o output, conf config, ps *processes) (sum train.Summary, err error) {
	ctx, cancel := ps.watch(ctx)
	defer cancel(nil)
	start, err := startModel(conf)
	if err != nil {
		return sum, err
	}
	given := conf
	if conf.Policy, err = ps.place(conf.Policy); err != nil {
		return sum, err
	}
	plan, err := conf.foretell(o, start, ps)
	if err != nil {
		return sum, err
	}
	conf.Policy.CacheBytes, given.Policy.CacheBytes = plan.Cache, plan.Cache
	if err := ps.lead(ctx, given, start); err != nil {
		return sum, err
	}
	t, err := openSetup(ctx, conf, start, ps)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	l, closeLearner, err := newLearner(ctx, t, conf, ps)
	if err != nil {
		return sum, err
	}
	defer closeLearner()

	view := ui.NewProgress(o.err, t.generator.InFlight)
	defer view.Close()
	if past, err := ui.ReadMetrics(filepath.Join(conf.Run, "metrics.jsonl")); err == nil {
		view.Resume(past)
	}
	evals, err := newEvaluations(ctx, t, conf.Run, func(steps int) {
		view.Println(fmt.Sprintf("measuring after step %d", steps))
		view.Measuring(true)
	}, func(e evaluation) {
		view.Measuring(false)
		view.Println(fmt.Sprintf("measured after step %d: %s, %.0f s", e.Step, e, e.Seconds))
	})
	if err != nil {
		return sum, err
	}
	game, err := t.game(ctx, poolDir(conf))
	if err != nil {
		return sum, err
	}
	// From here on there is a run, to go on with. One that goes on has its new settings
	// kept once it has taken them: they may be refused, or another process have the run.
	keep, stepped := sync.OnceValue(given.write), false
	if c.Resume == "" {
		if err := keep(); err != nil {
			return sum, err
		}
	}
	sum, err = train.Train(ctx, train.Options{
		Settings: conf.Train, Dir: conf.Run, Seed: conf.Seed, Resume: c.Resume != "", OnEvent: view.OnEvent,
		Before: func(ctx context.Context, step int) error {
			stepped = true
			if err := keep(); err != nil {
				return err
			}
			return evals.before(ctx, step)
		},
	}, l, trainGame{game})
	if err != nil {
		return sum, err
	}
	if !stepped {
		view.Println(fmt.Sprintf("the run has taken %d steps, of %d; --steps N asks for more", sum.Steps, conf.Train.Steps))
	}
	return sum, errors.Join(evals.at(ctx, sum.Steps), ps.dismiss(ctx))
}

// startModel is the folder to load weights from: the newest checkpoint where
// there is one, so that a resumed run does not need its first model again. Adapters
// need it: the weights of their checkpoints have them merged in.
func startModel(conf config) (string, error) {
	if conf.Policy.LoRA != nil {
		return conf.Model, nil
	}
	last, err := train.LastCheckpoint(conf.Run)
	if errors.Is(err, fs.ErrNotExist) {
		return conf.Model, nil
	}
	return train.Weights(last), err
}

// poolDir is where the run's bugs are: its own folder, or a fixed pool.
func poolDir(conf config) string {
	if conf.Game.Mode == selfplay.RepairOnly {
		return conf.Game.Bugs
	}
	return filepath.Join(conf.Run, bugsDir)
}

// newLearner joins the policy to the loop, beside a frozen copy of the first
// weights where the objective measures the divergence from them.
func newLearner(ctx context.Context, t *setup, conf config, ps *processes) (train.Learner, func(), error) {
	l, err := ps.learner(ctx, t.policy)
	if err != nil {
		return nil, nil, err
	}
	l.Base = conf.Model
	if !conf.Train.NeedsReference() {
		return l, l.Close, nil
	}
	frozen, err := model.Load(conf.Model, model.Options{Workers: conf.Policy.workers(), Device: t.policy.Device()})
	if err != nil {
		l.Close()
		return nil, nil, fmt.Errorf("reference policy of train.objective: %w", err)
	}
	return learner.WithReference{Learner: l, Frozen: frozen}, func() {
		frozen.Close()
		l.Close()
	}, nil
}
