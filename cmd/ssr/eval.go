package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/sync/errgroup"

	"github.com/ssr-go/ssr/internal/atomicfile"
	"github.com/ssr-go/ssr/internal/stats"
	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/rollout/selfplay"
)

type evalCmd struct {
	Model    string   `help:"The policy: a folder, or the URL of an OpenAI-compatible server such as https://host/v1 (key: $OPENAI_API_KEY). Limits then count bytes."`
	Remote   string   `name:"remote-model" help:"The policy's name at the server; by default the only one there."`
	Repo     string   `type:"existingdir" help:"The original repository."`
	Bugs     string   `required:"" type:"existingdir" help:"A folder of bugs, or a run's folder."`
	Attempts int      `default:"1" help:"Attempts at each bug."`
	Config   string   `type:"existingfile" help:"A configuration, for instance a run's config.yaml: prompts, limits and sampling as there."`
	Set      []string `help:"Override a field of the configuration." placeholder:"KEY.KEY=VALUE" sep:"none"`
	Out      string   `type:"path" help:"Write the episodes to this file, JSON lines."`
	jsonFlag
}

// evaluation is the result of attempting a fixed set of bugs.
type evaluation struct {
	Step    int    `json:"step"`
	Version int64  `json:"version"`
	Model   string `json:"model,omitempty"`
	// Pass1 is over the attempts that were not lost to infrastructure.
	Pass1 stats.Interval `json:"pass_at_1"`
	// PassK is pass@Attempts, absent with one attempt each.
	PassK    *float64  `json:"pass_at_k,omitempty"`
	Attempts int       `json:"attempts"`
	Bugs     []bugRate `json:"bugs"`
	// Failed counts attempts lost to infrastructure.
	Failed   int            `json:"failed"`
	Outcomes map[string]int `json:"outcomes"`
	Seconds  float64        `json:"seconds"`
}

type bugRate struct {
	ID       string `json:"id"`
	Attempts int    `json:"attempts"`
	Solved   int    `json:"solved"`
}

func (c *evalCmd) Run(ctx context.Context, o output) (err error) {
	conf, err := readConfig(c.Config, c.Set)
	if err != nil {
		return err
	}
	if c.Model != "" {
		conf.Model = c.Model
	}
	if c.Remote != "" {
		conf.Policy.Remote = c.Remote
	}
	if c.Repo != "" {
		conf.Repo = c.Repo
	}
	conf.Run = "eval"
	if err := conf.check(); err != nil {
		return err
	}
	bugs, _, err := loadBugs(c.Bugs)
	if err != nil {
		return err
	}
	if len(bugs) == 0 {
		return fmt.Errorf("%s holds no bug: a bug is a folder with report.json beside its artifact", c.Bugs)
	}
	window := conf.Episodes.Limits.Context
	if !isURL(conf.Model) {
		shape, err := model.ReadConfig(conf.Model)
		if err != nil {
			return err
		}
		window = shape.MaxPositions
	}
	conf.fit(window)
	t, err := openSetup(ctx, conf, conf.Model)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	result, groups, err := t.evaluate(ctx, bugs, c.Attempts, 0)
	if err != nil {
		return err
	}
	result.Model = conf.Model
	if c.Out != "" {
		if err := writeEpisodes(c.Out, groups); err != nil {
			return err
		}
	}
	if c.JSON {
		return printJSON(o.out, result)
	}
	printEvaluation(o.out, result)
	return nil
}

// evaluate has the policy attempt every bug. The draws depend on the seed, the
// step and the bug, and on nothing that training draws.
func (t *setup) evaluate(ctx context.Context, bugs []selfplay.Bug, attempts, step int) (evaluation, []*rollout.Group, error) {
	began := time.Now()
	solvers := selfplay.Solvers{Runner: t.runner, Env: t.env, Repo: t.repo, Validator: t.validator}
	groups := make([]*rollout.Group, len(bugs))
	g, gctx := errgroup.WithContext(ctx)
	for i, bug := range bugs {
		g.Go(func() (err error) {
			groups[i], err = solvers.Play(gctx, fmt.Sprintf("eval-s%05d-b%s", step, bug.ID), step, bug, attempts)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return evaluation{}, nil, fmt.Errorf("evaluate: %w", err)
	}
	e := evaluation{Step: step, Version: t.version(), Attempts: attempts, Outcomes: map[string]int{}}
	var tasks []stats.Task
	for i, group := range groups {
		var task stats.Task
		for _, tr := range group.Trajectories {
			if tr.Status != rollout.Scored {
				e.Failed++
				continue
			}
			e.Outcomes[tr.Outcome]++
			task.Attempts++
			if tr.Outcome == selfplay.OutcomeSolved {
				task.Solved++
			}
		}
		tasks = append(tasks, task)
		e.Bugs = append(e.Bugs, bugRate{bugs[i].ID, task.Attempts, task.Solved})
	}
	if e.Pass1 = stats.Pass1(tasks, t.conf.Seed); math.IsNaN(e.Pass1.Value) {
		return e, groups, fmt.Errorf("evaluate: all %d attempts were lost to infrastructure: %s", e.Failed, firstFailure(groups))
	}
	if pass := stats.PassK(tasks, attempts); attempts > 1 && !math.IsNaN(pass) {
		e.PassK = &pass
	}
	e.Seconds = time.Since(began).Seconds()
	return e, groups, nil
}

func firstFailure(groups []*rollout.Group) string {
	for _, g := range groups {
		for _, t := range g.Trajectories {
			if t.Failure != "" {
				return t.Failure
			}
		}
	}
	return "no reason was recorded"
}

func writeEpisodes(path string, groups []*rollout.Group) error {
	return atomicfile.Write(path, func(w io.Writer) error {
		e := json.NewEncoder(w)
		for _, g := range groups {
			for _, t := range g.Trajectories {
				if err := e.Encode(t); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func printEvaluation(out *os.File, e evaluation) {
	t := ui.NewTable(out, table.Row{"bug", "solved", "attempts"}, 2, 3)
	for _, b := range e.Bugs {
		t.AppendRow(table.Row{b.ID, b.Solved, b.Attempts})
	}
	t.Render()
	fmt.Fprintf(out, "%s; %d bugs, %d attempts each, %.0f s\n", e, len(e.Bugs), e.Attempts, e.Seconds)
	if e.PassK != nil {
		fmt.Fprintf(out, "pass@%d %.1f%%\n", e.Attempts, 100**e.PassK)
	}
}

// String is the result in a line, with the attempts that do not count where there are any.
func (e evaluation) String() string {
	line := fmt.Sprintf("pass@1 %s (95%%)", e.Pass1)
	if e.Failed > 0 {
		line += fmt.Sprintf(", without %d of %d attempts that were lost to infrastructure", e.Failed, len(e.Bugs)*e.Attempts)
	}
	return line
}

// evaluations are a run's measurements, in its eval.jsonl: one line each, a
// step's at most once.
type evaluations struct {
	path   string
	setup  *setup
	bugs   []selfplay.Bug
	conf   evalConfig
	done   map[int]bool
	report func(evaluation)
}

const evalName = "eval.jsonl"

// newEvaluations reads what a run has measured; nil when it measures nothing.
func newEvaluations(t *setup, run string, report func(evaluation)) (*evaluations, error) {
	if t.conf.Eval.Bugs == "" {
		return nil, nil
	}
	e := &evaluations{path: filepath.Join(run, evalName), setup: t, conf: t.conf.Eval, done: map[int]bool{}, report: report}
	var err error
	if e.bugs, _, err = loadBugs(t.conf.Eval.Bugs); err != nil {
		return nil, fmt.Errorf("eval.bugs: %w", err)
	}
	if len(e.bugs) == 0 {
		return nil, fmt.Errorf("eval.bugs: %s holds no bug", t.conf.Eval.Bugs)
	}
	past, err := readEvaluations(e.path)
	for _, p := range past {
		e.done[p.Step] = true
	}
	return e, err
}

// readEvaluations reads an eval.jsonl; there may be none.
func readEvaluations(path string) (all []evaluation, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	err = eachLine(f, func(n int, line []byte) error {
		var e evaluation
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
		all = append(all, e)
		return nil
	})
	return all, err
}

// before measures ahead of a step: before the first one, and after every
// conf.Every of them.
func (e *evaluations) before(ctx context.Context, step int) error {
	if e == nil || step > 1 && (e.conf.Every <= 0 || (step-1)%e.conf.Every != 0) {
		return nil
	}
	return e.at(ctx, step-1)
}

// at measures the policy after a number of steps, unless that was done already.
func (e *evaluations) at(ctx context.Context, steps int) error {
	if e == nil || e.done[steps] {
		return nil
	}
	result, _, err := e.setup.evaluate(ctx, e.bugs, e.conf.Attempts, steps)
	if err != nil {
		return err
	}
	past, err := readEvaluations(e.path)
	if err != nil {
		return err
	}
	err = atomicfile.Write(e.path, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		for _, p := range append(past, result) {
			if err := enc.Encode(p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	e.done[steps] = true
	e.report(result)
	return nil
}
