package selfplay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rollout"
)

// Solver returns the oracle solver of a bug: it knows the original, views the
// function that the injection changed, restores it, and submits.
func (p *Planner) Solver(ctx context.Context, bug Bug, protocol token.Protocol) (rollout.TextPlayer, error) {
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

	s := &scriptedSolver{protocol: protocol}
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
	s.calls = append(s.calls, token.Call{Name: ToolSubmit})
	return s, nil
}

// repair adds the calls that look at and restore one file.
func (p *Planner) repair(s *scriptedSolver, file string, broken, original []string) error {
	start, end, with := changedRegion(broken, original)
	if start == end && len(with) == 0 {
		return nil
	}
	for _, f := range p.recipe.functions(broken) {
		if f.start > start || f.end < end {
			continue
		}
		data := p.recipe.data(file, f, "")
		view, err := p.recipe.command("view", data)
		if err != nil {
			return err
		}
		s.calls = append(s.calls, token.Call{Name: ToolBash, Body: view})
		if p.recipe.Rewrite == "" {
			return s.edit(file, broken, start, end, with)
		}
		data.Text = f.spliced(broken, start, end, with)
		rewrite, err := p.recipe.command("rewrite", data)
		if err != nil {
			return err
		}
		s.calls = append(s.calls, token.Call{Name: ToolBash, Body: rewrite})
		return nil
	}
	view := fmt.Sprintf("sed -n '%d,%dp' %s", max(1, start-5), min(len(broken), end+5), file)
	s.calls = append(s.calls, token.Call{Name: ToolBash, Body: view})
	return s.edit(file, broken, start, end, with)
}

// edit adds the call that puts other lines in the place of some.
func (s *scriptedSolver) edit(file string, broken []string, start, end int, with []string) error {
	edit, ok := uniqueSplice(broken, start, end, with, len(broken))
	if !ok {
		return fmt.Errorf("no unique place to restore in %s", file)
	}
	s.calls = append(s.calls, token.Call{Name: ToolEdit, Body: token.FormatEdit(file, strings.Join(edit.old, "\n"), strings.Join(edit.new, "\n"))})
	return nil
}

// scriptedSolver makes its calls one after the other.
type scriptedSolver struct {
	protocol token.Protocol
	calls    []token.Call
	turn     int
}

func (s *scriptedSolver) Turn(_ context.Context, seen string) (string, error) {
	if strings.Contains(seen, "[error:") || strings.Contains(seen, "[killed") {
		return "", giveUp("turn %d was answered with %q", s.turn, seen)
	}
	if s.turn == len(s.calls) {
		return "", giveUp("the submission was not accepted: %q", seen)
	}
	s.turn++
	return s.protocol.FormatCall(s.calls[s.turn-1]), nil
}
