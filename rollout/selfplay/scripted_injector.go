package selfplay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/sandbox"
)

// Plan is one injection that a scripted injector can carry out: one splice of
// one file.
type Plan struct {
	Strategy Strategy
	File     string
	Function string
	// Commit is the change that a history plan undoes.
	Commit string

	fn       function
	edit     splice
	text     string // the function as the plan leaves it
	testFile string
}

// Target is the place of the plan as it is told to an injector.
func (p Plan) Target() *Target { return &Target{File: p.File, Function: p.Function} }

// Planner finds the injections that scripted players can carry out in one
// repository. It is read-only after NewPlanner and safe for concurrent use.
type Planner struct {
	repo   *Repo
	recipe *recipe
	files  []string
	plans  []Plan
}

const (
	planLines  = 4 // most lines a removal takes out
	blockLines = 6 // most lines of a SEARCH block
	logLength  = 6 // commits that a recipe's Log shows
)

// NewPlanner looks for removals in the repository's functions and, in one
// sandbox, for commits that can be undone by one edit.
func NewPlanner(ctx context.Context, backend sandbox.Backend, repo *Repo, r Recipe) (*Planner, error) {
	c, err := r.compile()
	if err != nil {
		return nil, err
	}
	p := &Planner{repo: repo, recipe: c, files: repo.Files()}
	for _, file := range p.files {
		if !c.isSource(file) {
			continue
		}
		text, err := repo.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		p.removals(file, splitLines(text))
	}
	if err := p.history(ctx, backend); err != nil {
		return nil, err
	}
	return p, nil
}

// Plans lists all plans in a fixed order.
func (p *Planner) Plans() []Plan { return slices.Clone(p.plans) }

// Targets lists, by strategy and in a fixed order, the functions that have a
// plan: what a game can tell its injectors to aim at.
func (p *Planner) Targets() map[Strategy][]Target {
	all := map[Strategy][]Target{}
	for _, plan := range p.plans {
		if t := *plan.Target(); !slices.Contains(all[plan.Strategy], t) {
			all[plan.Strategy] = append(all[plan.Strategy], t)
		}
	}
	return all
}

// Pick draws a plan among those whose strategy, file and function the prompt
// mentions, or, where it mentions none, among all of its strategy.
func (p *Planner) Pick(prompt string, draw *rand.Rand) (Plan, bool) {
	best, most := []Plan(nil), -1
	for _, plan := range p.plans {
		score := 0
		if strings.Contains(prompt, string(plan.Strategy)) || plan.Strategy == History && strings.Contains(prompt, "git log") ||
			plan.Strategy == Removal && strings.Contains(prompt, "Remove code") {
			score += 4
		}
		if strings.Contains(prompt, plan.File) {
			score += 2
			if mentions(prompt, plan.Function) {
				score++
			}
		}
		if score > most {
			best, most = nil, score
		}
		if score == most {
			best = append(best, plan)
		}
	}
	if len(best) == 0 {
		return Plan{}, false
	}
	return best[draw.IntN(len(best))], true
}

// mentions says whether text contains word as a whole word.
func mentions(text, word string) bool {
	for _, w := range strings.FieldsFunc(text, func(r rune) bool { return !isWord(r) }) {
		if w == word {
			return true
		}
	}
	return false
}

func (p *Planner) removals(file string, lines []string) {
	for _, f := range p.recipe.functions(lines) {
		test := p.recipe.testFile(p.files, p.repo.ReadFile, file, f.name)
		if test == "" {
			continue
		}
		for _, r := range p.recipe.removals(lines, f, planLines) {
			if edit, ok := uniqueSplice(lines, r.start, r.end, r.with, blockLines); ok {
				p.plans = append(p.plans, Plan{Strategy: Removal, File: file, Function: f.name, fn: f, edit: edit, text: f.spliced(lines, r.start, r.end, r.with), testFile: test})
			}
		}
	}
}

// history reads the log in a sandbox: a repository's own git must not run on the host.
func (p *Planner) history(ctx context.Context, backend sandbox.Backend) error {
	tree, err := p.repo.InjectorTree(ctx)
	if err != nil {
		return fmt.Errorf("prepare a tree to plan in: %w", err)
	}
	defer tree.Release()
	box, err := backend.Start(ctx, sandbox.Spec{Dir: tree.Dir, Frozen: true, Owner: "planner"})
	if err != nil {
		return fmt.Errorf("start a sandbox to plan in: %w", err)
	}
	defer box.Close()
	for _, file := range p.files {
		if !p.recipe.isSource(file) {
			continue
		}
		res, err := box.Exec(ctx, sandbox.Cmd{Args: []string{"git", "log", fmt.Sprint("-", logLength), "-p", "-U1", "--no-color", "--format=commit %h", "--", file}})
		if err != nil {
			return fmt.Errorf("read the log of %s: %w", file, err)
		}
		if !res.OK() {
			return nil // no history: removals remain
		}
		text, err := p.repo.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		p.reverts(file, splitLines(text), string(res.Stdout))
	}
	return nil
}

// reverts makes plans of the commits in a log that changed file in one place
// which still stands.
func (p *Planner) reverts(file string, lines []string, log string) {
	functions := p.recipe.functions(lines)
	for _, entry := range strings.Split("\n"+log, "\ncommit ")[1:] {
		commit, body, _ := strings.Cut(entry, "\n")
		hunks := strings.Split(body, "\n@@ ")
		if len(hunks) != 2 || strings.Contains(hunks[0], "\nnew file") || strings.Contains(hunks[0], "--- /dev/null") {
			continue
		}
		var now, before []string
		for _, line := range strings.Split(strings.TrimRight(hunks[1], "\n"), "\n")[1:] {
			if line == "" {
				line = " "
			}
			if line[0] != '-' && line[0] != '\\' {
				now = append(now, line[1:])
			}
			if line[0] != '+' && line[0] != '\\' {
				before = append(before, line[1:])
			}
		}
		if len(now) == 0 || occurrences(lines, now) != 1 {
			continue
		}
		at := 0
		for !slices.Equal(lines[at:at+len(now)], now) {
			at++
		}
		start, end, with := changedRegion(now, before)
		edit, ok := uniqueSplice(lines, at+start, at+end, with, blockLines)
		if !ok || len(edit.new) > blockLines {
			continue
		}
		for _, f := range functions {
			if f.start <= at+start && at+end <= f.end {
				if test := p.recipe.testFile(p.files, p.repo.ReadFile, file, f.name); test != "" {
					p.plans = append(p.plans, Plan{Strategy: History, File: file, Function: f.name, Commit: commit, fn: f, edit: edit,
						text: f.spliced(lines, at+start, at+end, with), testFile: test})
				}
				break
			}
		}
	}
}

// Injector returns the scripted injector of a plan. It writes its calls in
// protocol. A careful one runs the tests and weakens one that fails, and breaks the
// function anew where none does; another guesses which fails, where a test's name
// tells, and submits.
func (p *Planner) Injector(plan Plan, protocol token.Protocol, habits Habits) (ScriptedPlayer, error) {
	s := &scriptedInjector{worker: worker{Habits: habits}, planner: p, plan: plan, protocol: protocol}
	if !habits.Careful {
		text, err := p.repo.ReadFile(plan.testFile)
		if err != nil {
			return nil, fmt.Errorf("read the tests of %s: %w", plan.Function, err)
		}
		s.test = p.guess(plan, splitLines(text))
	}
	s.Careful = habits.Careful && p.recipe.mends()
	s.rest = s.steps()
	return s, nil
}

type scriptedInjector struct {
	worker
	planner  *Planner
	plan     Plan
	protocol token.Protocol

	rest     []string // steps still to be taken
	last     string
	slipped  bool   // in the last step
	unset    bool   // slipped where the test files were written
	test     string // the test that is deleted, where that is a guess
	failures int
}

// steps are the turns of a plan: look, write the three test files, break the
// function, run the tests unless the test to delete is guessed, weaken, submit.
func (s *scriptedInjector) steps() []string {
	look := []string{"view"}
	switch {
	case s.plan.Strategy == History && s.planner.recipe.Rewrite != "":
		look = []string{"log", "view"}
	case s.plan.Strategy == History:
		look = []string{"log"}
	}
	all := append(look, "setup", "break")
	if s.test == "" {
		all = append(all, "failing")
	}
	return append(all, "weaken", "submit")
}

// retry puts steps before those that are left, where the player may still fail.
func (s *scriptedInjector) retry(steps ...string) bool {
	if s.failures++; !s.Careful || s.failures > mostSlips {
		return false
	}
	s.rest = append(steps, s.rest...)
	return true
}

func (s *scriptedInjector) Turn(_ context.Context, seen string) (string, error) {
	if strings.Contains(seen, "[error:") || strings.Contains(seen, "[killed") {
		return "", giveUp("turn %d was answered with %q", s.turn, seen)
	}
	switch s.last {
	case "submit":
		return "", giveUp("the submission was not accepted: %q", seen)
	case "log":
		if !s.slipped && !mentions(strings.Join(observed(seen), "\n"), s.plan.Commit) {
			return "", giveUp("the last change is not that of commit %s", s.plan.Commit)
		}
	case "setup":
		if s.slipped && strings.Contains(seen, "bash:") { // it shows
			s.rest = append([]string{"setup"}, s.rest...)
		}
		s.unset = s.slipped
	case "failing":
		again := []string{"reset", "break", "failing"}
		if s.unset {
			again = []string{"reset", "setup", "break", "failing"}
		}
		if failing := observed(seen); (len(failing) == 0 || failing[0] == "none") && !s.retry(again...) {
			return "", giveUp("no test fails: %q", seen)
		}
	}
	s.last, s.rest = s.rest[0], s.rest[1:]
	call, err := s.call(s.last)
	if err != nil {
		return "", err
	}
	s.slipped = false
	switch s.last {
	case "view", "log":
		if call.Body, s.slipped = s.slip(call.Body); s.slipped {
			s.rest = append([]string{s.last}, s.rest...)
		}
	case "setup", "break":
		call.Body, s.slipped = s.slip(call.Body)
	case "failing":
		s.checks()
	}
	s.turn++
	return s.protocol.FormatCall(call), nil
}

// call is the tool call of a step.
func (s *scriptedInjector) call(step string) (token.Call, error) {
	c := s.planner.recipe
	d := c.data(s.plan.File, s.plan.fn, s.plan.testFile)
	d.Text, d.Test = s.plan.text, s.test
	switch {
	case step == "submit":
		return token.Call{Name: ToolSubmit}, nil
	case step == "break" && c.Rewrite == "":
		return token.Call{Name: ToolEdit, Body: token.FormatEdit(s.plan.File, strings.Join(s.plan.edit.old, "\n"), strings.Join(s.plan.edit.new, "\n"))}, nil
	case step == "break":
		step = "rewrite"
	}
	body, err := c.command(step, d)
	return token.Call{Name: ToolBash, Body: body}, err
}

// guess is the first test whose name has that of the plan's function in it, "" for none.
func (p *Planner) guess(plan Plan, tests []string) string {
	for _, f := range p.recipe.functions(tests) {
		if strings.Contains(f.name, plan.Function) {
			return f.name
		}
	}
	return ""
}
