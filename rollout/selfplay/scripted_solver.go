package selfplay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/model/token"
)

// Solver returns the oracle solver of a bug: it knows the original, views the
// function that the injection changed, restores it, and submits; a careful one
// runs the tests before it does.
func (p *Planner) Solver(ctx context.Context, bug Bug, protocol token.Protocol, habits Habits) (ScriptedPlayer, error) {
	inject, err := ParsePatch(bug.Artifact.BugInject)
	if err != nil {
		return nil, fmt.Errorf("read the injection of bug %s: %w", bug.ID, err)
	}
	paths := inject.Paths()
	if bug.Failed != nil {
		failed, err := ParsePatch(bug.Failed)
		if err != nil {
			return nil, fmt.Errorf("read the failed patch of bug %s: %w", bug.ID, err)
		}
		paths = append(paths, failed.Paths()...)
		slices.Sort(paths)
		paths = slices.Compact(paths)
	}
	tree, err := p.repo.SolverTree(ctx, bug.Artifact, bug.Failed)
	if err != nil {
		return nil, fmt.Errorf("prepare the tree of bug %s: %w", bug.ID, err)
	}
	defer tree.Release()

	s := &scriptedSolver{worker: worker{Habits: habits}, protocol: protocol, slippery: map[token.Call]bool{}, views: map[token.Call]bool{}}
	for _, file := range paths {
		if p.recipe.isTest(file) {
			continue
		}
		original, err := p.repo.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("bug %s: the oracle can only restore files that existed: %w", bug.ID, err)
		}
		broken, err := os.ReadFile(filepath.Join(tree.Dir, filepath.FromSlash(file)))
		if err != nil {
			return nil, fmt.Errorf("bug %s: the oracle can only mend files that exist: %w", bug.ID, err)
		}
		if err := p.repair(s, file, splitLines(broken), splitLines(original)); err != nil {
			return nil, fmt.Errorf("bug %s: %w", bug.ID, err)
		}
	}
	if s.Careful = habits.Careful && p.recipe.mends() && s.check.Body != ""; s.Careful {
		s.rest = append(s.rest, s.check)
	}
	return s, nil
}

// repair adds the calls that look at and restore one file. Blank lines at its end
// stay as they are: that they are there tells no function from another.
func (p *Planner) repair(s *scriptedSolver, file string, broken, original []string) error {
	broken, original = trimBlank(broken), trimBlank(original)
	start, end, with := changedRegion(broken, original)
	if start == end && len(with) == 0 {
		return nil
	}
	for _, f := range p.recipe.functions(broken) {
		if f.start > start || f.end < end {
			continue
		}
		data := p.recipe.data(file, f, p.recipe.testFile(p.files, p.repo.ReadFile, file, f.name))
		data.Text = f.spliced(broken, start, end, with)
		bash := func(command string) (token.Call, error) {
			body, err := p.recipe.command(command, data)
			return token.Call{Name: ToolBash, Body: body}, err
		}
		view, err := bash("view")
		if err != nil {
			return err
		}
		s.rest = append(s.rest, view)
		if p.recipe.Rewrite == "" {
			return s.edit(file, broken, start, end, with)
		}
		rewrite, err1 := bash("rewrite")
		reset, err2 := bash("reset")
		check, err3 := bash("check")
		s.rest, s.again, s.check = append(s.rest, rewrite), append(s.again, reset, rewrite), check
		s.slippery[view], s.views[view], s.slippery[rewrite] = true, true, true
		return errors.Join(err1, err2, err3)
	}
	view := fmt.Sprintf("sed -n '%d,%dp' %s", max(1, start-5), min(len(broken), end+5), file)
	s.rest = append(s.rest, token.Call{Name: ToolBash, Body: view})
	return s.edit(file, broken, start, end, with)
}

// edit adds the call that puts other lines in the place of some.
func (s *scriptedSolver) edit(file string, broken []string, start, end int, with []string) error {
	edit, ok := uniqueSplice(broken, start, end, with, len(broken))
	if !ok {
		return fmt.Errorf("no unique place to restore in %s", file)
	}
	s.rest = append(s.rest, token.Call{Name: ToolEdit, Body: token.FormatEdit(file, strings.Join(edit.old, "\n"), strings.Join(edit.new, "\n"))})
	return nil
}

// scriptedSolver makes its calls one after the other and submits. A careful one
// checks first, and repairs again where the tests do not pass.
type scriptedSolver struct {
	worker
	protocol token.Protocol
	rest     []token.Call        // still to be made before the submission
	again    []token.Call        // a repair after one that failed
	check    token.Call          // of the last file that is repaired
	slippery map[token.Call]bool // the calls that can go wrong, and
	views    map[token.Call]bool // those that are then made again at once
	last     token.Call
	failures int
}

func (s *scriptedSolver) Turn(_ context.Context, seen string) (string, error) {
	if strings.Contains(seen, "[error:") || strings.Contains(seen, "[killed") {
		return "", giveUp("turn %d was answered with %q", s.turn, seen)
	}
	switch {
	case s.last.Name == ToolSubmit:
		return "", giveUp("the submission was not accepted: %q", seen)
	case s.Careful && s.last == s.check && !slices.Contains(observed(seen), "OK"):
		if s.failures++; s.failures > mostSlips {
			return "", giveUp("the repair does not pass: %q", seen)
		}
		s.rest = append(slices.Clone(s.again), s.check)
	case len(s.rest) == 0:
		s.rest = []token.Call{{Name: ToolSubmit}}
	}
	s.last, s.rest = s.rest[0], s.rest[1:]
	call := s.last
	switch {
	case s.slippery[call]:
		var slipped bool
		if call.Body, slipped = s.slip(call.Body); slipped && s.views[s.last] {
			s.rest = slices.Insert(s.rest, 0, s.last)
		}
	case call == s.check:
		s.checks()
	}
	s.turn++
	return s.protocol.FormatCall(call), nil
}
