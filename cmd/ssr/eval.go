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
	"slices"
	"strings"
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
	Model  string `help:"The policy: a folder, or the URL of an OpenAI-compatible server such as https://host/v1 (key: $OPENAI_API_KEY). Limits then count bytes."`
	Remote string `name:"remote-model" help:"The policy's name at the server; by default the only one there."`
	Repo   string `type:"existingdir" help:"The original repository."`
	environmentFlag
	Bugs       string   `type:"existingdir" help:"A folder of bugs, or a run's folder, to be solved."`
	Injections int      `help:"How many prompts to inject a bug for."`
	Attempts   int      `default:"1" help:"Attempts at each bug and each prompt."`
	Config     string   `type:"existingfile" help:"A configuration, for instance a run's config.yaml: prompts, limits and sampling as there."`
	Set        []string `help:"Override a field of the configuration." placeholder:"KEY.KEY=VALUE" sep:"none"`
	Out        string   `type:"path" help:"Write the episodes to this file, JSON lines."`
	jsonFlag
}

// exam is a fixed set of tasks for a policy.
type exam struct {
	bugs []selfplay.Bug
	// injections is how many prompts for a bug there are: the draws of a step
	// that no training has, the same whenever they are made.
	injections int
	attempts   int // at each bug and each prompt
}

// evaluation is the result of an exam.
type evaluation struct {
	Step    int    `json:"step"`
	Version int64  `json:"version"`
	Model   string `json:"model,omitempty"`
	// Pass1 is over the attempts at bugs that were not lost to infrastructure;
	// absent without bugs.
	Pass1 *stats.Interval `json:"pass_at_1,omitempty"`
	// PassK is pass@Attempts, absent with one attempt each.
	PassK *float64 `json:"pass_at_k,omitempty"`
	// Valid is the share of injections that make a valid bug, absent without any.
	Valid      *stats.Interval `json:"valid,omitempty"`
	Attempts   int             `json:"attempts"`
	Bugs       []bugRate       `json:"bugs,omitempty"`
	Injections int             `json:"injections,omitempty"`
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
	if c.Environment != "" {
		conf.Sandbox.Environment = c.Environment
	}
	conf.Run = "eval"
	folder := filepath.Dir(c.Out)
	if err := refuse(conf.checkPaths(), conf.check(), rule(isDir(folder), "--out: %s is not a folder", folder)); err != nil {
		return err
	}
	x, err := newExam(c.Bugs, c.Injections, c.Attempts)
	if err != nil {
		return err
	}
	if len(x.bugs)+x.injections == 0 {
		return errors.New("nothing to measure: give --bugs DIR, --injections N or both")
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
	t, err := openSetup(ctx, conf, conf.Model, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := x.fits(ctx, t.repo); err != nil {
		return err
	}
	result, groups, err := t.evaluate(ctx, x, 0)
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

// newExam reads the bugs in a folder; "" stands for none.
func newExam(dir string, injections, attempts int) (exam, error) {
	x := exam{injections: injections, attempts: attempts}
	if injections < 0 || attempts < 1 {
		return x, fmt.Errorf("%d injections and %d attempts each; neither may be negative, and there is at least one attempt", injections, attempts)
	}
	if dir == "" {
		return x, nil
	}
	var err error
	if x.bugs, _, err = loadBugs(dir); err != nil {
		return x, err
	}
	if len(x.bugs) == 0 {
		return x, fmt.Errorf("%s holds no bug: a bug is a folder with report.json beside its artifact", dir)
	}
	return x, nil
}

// fits returns an error where a bug is none of the repository.
func (x exam) fits(ctx context.Context, repo *selfplay.Repo) error {
	for _, bug := range x.bugs {
		if err := repo.Fits(ctx, bug); err != nil {
			return err
		}
	}
	return nil
}

// evaluate has the policy attempt every bug and prompt. The draws depend on the
// seed, the step and the bug or prompt, and on nothing that training draws.
func (t *setup) evaluate(ctx context.Context, x exam, step int) (evaluation, []*rollout.Group, error) {
	began := time.Now()
	solvers := selfplay.Solvers{Runner: t.runner, Env: t.env, Repo: t.repo, Validator: t.validator}
	attempts := make([]*rollout.Group, len(x.bugs))
	var injections []*rollout.Group
	g, gctx := errgroup.WithContext(ctx)
	for i, bug := range x.bugs {
		g.Go(func() (err error) {
			attempts[i], err = solvers.Play(gctx, fmt.Sprintf("eval-s%05d-b%s", step, bug.ID), step, bug, x.attempts)
			return err
		})
	}
	if x.injections > 0 {
		g.Go(func() (err error) {
			injections, err = t.inject(gctx, x.injections, x.attempts)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return evaluation{}, nil, fmt.Errorf("evaluate: %w", err)
	}
	groups := append(injections, attempts...)
	e := evaluation{Step: step, Version: t.version(), Attempts: x.attempts, Injections: x.injections, Outcomes: map[string]int{}}
	solved, valid := e.count(attempts, selfplay.OutcomeSolved), e.count(injections, selfplay.OutcomeValid)
	for i, task := range solved {
		e.Bugs = append(e.Bugs, bugRate{x.bugs[i].ID, task.Attempts, task.Solved})
	}
	for _, rate := range []struct {
		tasks []stats.Task
		to    **stats.Interval
	}{{solved, &e.Pass1}, {valid, &e.Valid}} {
		if len(rate.tasks) == 0 {
			continue
		}
		r := stats.Pass1(rate.tasks, t.conf.Seed)
		if math.IsNaN(r.Value) {
			return e, groups, fmt.Errorf("evaluate: all of %d attempts were lost to infrastructure: %s", e.Failed, firstFailure(groups))
		}
		*rate.to = &r
	}
	if pass := stats.PassK(solved, x.attempts); x.attempts > 1 && !math.IsNaN(pass) {
		e.PassK = &pass
	}
	e.Seconds = time.Since(began).Seconds()
	return e, groups, nil
}

// inject plays n injector groups whose bugs are validated and not kept.
func (t *setup) inject(ctx context.Context, n, attempts int) (groups []*rollout.Group, err error) {
	dir, err := os.MkdirTemp("", "ssr-eval-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	only := *t
	only.conf.Game.Mode, only.conf.Game.Resample = selfplay.InjectionOnly, 0
	only.conf.Game.InjectorGroups, only.conf.Game.InjectorsPerPrompt = n, attempts
	game, err := only.game(ctx, dir)
	if err != nil {
		return nil, err
	}
	err = game.Play(ctx, 0, nil, func(g *rollout.Group, _ map[string]float64) error {
		groups = append(groups, g)
		return nil
	})
	slices.SortFunc(groups, func(a, b *rollout.Group) int { return strings.Compare(a.ID, b.ID) })
	return groups, err
}

// count notes how the attempts of groups ended, and how many ended well.
func (e *evaluation) count(groups []*rollout.Group, well string) (tasks []stats.Task) {
	for _, group := range groups {
		var task stats.Task
		for _, t := range group.Trajectories {
			if t.Status != rollout.Scored {
				e.Failed++
				continue
			}
			e.Outcomes[t.Outcome]++
			task.Attempts++
			if t.Outcome == well {
				task.Solved++
			}
		}
		tasks = append(tasks, task)
	}
	return tasks
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
	if len(e.Bugs) > 0 {
		t := ui.NewTable(out, table.Row{"bug", "solved", "attempts"}, 2, 3)
		for _, b := range e.Bugs {
			t.AppendRow(table.Row{b.ID, b.Solved, b.Attempts})
		}
		t.Render()
	}
	fmt.Fprintf(out, "%s; %d bugs, %d injections, %d attempts each, %.0f s\n", e, len(e.Bugs), e.Injections, e.Attempts, e.Seconds)
	if e.PassK != nil {
		fmt.Fprintf(out, "pass@%d %.1f%%\n", e.Attempts, 100**e.PassK)
	}
}

// String is the result in a line, with the attempts that do not count where there are any.
func (e evaluation) String() string {
	var parts []string
	if e.Pass1 != nil {
		parts = append(parts, fmt.Sprintf("pass@1 %s", *e.Pass1))
	}
	if e.Valid != nil {
		parts = append(parts, fmt.Sprintf("valid injections %s", *e.Valid))
	}
	line := strings.Join(parts, ", ") + " (95%)"
	if e.Failed > 0 {
		line += fmt.Sprintf(", without %d of %d attempts that were lost to infrastructure", e.Failed, (len(e.Bugs)+e.Injections)*e.Attempts)
	}
	return line
}

// evaluations are a run's measurements, in its eval.jsonl: one line each, a
// step's at most once.
type evaluations struct {
	path   string
	setup  *setup
	exam   exam
	every  int
	done   map[int]bool
	begin  func(steps int)
	report func(evaluation)
}

const evalName = "eval.jsonl"

// newEvaluations reads what a run has measured; nil when it measures nothing.
// begin is called ahead of a measurement, report after it.
func newEvaluations(ctx context.Context, t *setup, run string, begin func(steps int), report func(evaluation)) (*evaluations, error) {
	conf := t.conf.Eval
	x, err := newExam(conf.Bugs, conf.Injections, conf.Attempts)
	if err != nil {
		return nil, fmt.Errorf("eval.bugs: %w", err)
	}
	if len(x.bugs)+x.injections == 0 {
		return nil, nil
	}
	if err := x.fits(ctx, t.repo); err != nil {
		return nil, fmt.Errorf("eval.bugs: %w", err)
	}
	e := &evaluations{path: filepath.Join(run, evalName), setup: t, exam: x, every: conf.Every, done: map[int]bool{}, begin: begin, report: report}
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
// e.every of them.
func (e *evaluations) before(ctx context.Context, step int) error {
	if e == nil || step > 1 && (e.every <= 0 || (step-1)%e.every != 0) {
		return nil
	}
	return e.at(ctx, step-1)
}

// at measures the policy after a number of steps, unless that was done already.
func (e *evaluations) at(ctx context.Context, steps int) error {
	if e == nil || e.done[steps] {
		return nil
	}
	e.begin(steps)
	result, _, err := e.setup.evaluate(ctx, e.exam, steps)
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
