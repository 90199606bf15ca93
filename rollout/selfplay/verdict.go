package selfplay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Verdict judges a solver's patch in a fresh sandbox that no solver touched
// (paper section 2.4): original → bug_inject → test_weaken → failed patch of a
// second-order bug (nil for a first-order one) → patch → oracle tests restored
// → script | parser, in a tree without .git. report is the artifact's
// validation. Solved means that every fail-to-pass and pass-to-pass test is
// present and passed.
//
// What of a patch takes part is decided in policy.go; docs/verdict.md lists the
// ways to turn a verdict that are closed, and those that remain. A patch that
// cannot be used is unsolved with a reason. An error means that no verdict was
// reached: the infrastructure failed (it wraps sandbox.ErrInfrastructure), ctx
// ended, or artifact, report, repository and second-order patch do not belong
// together.
func (v *Validator) Verdict(ctx context.Context, a Artifact, report Report, patch, secondOrder []byte) (Verdict, error) {
	verdict, err := v.verdict(ctx, a, report, patch, secondOrder)
	if err != nil {
		return Verdict{}, fmt.Errorf("verdict: %w", err)
	}
	return verdict, nil
}

func (v *Validator) verdict(ctx context.Context, a Artifact, report Report, patch, secondOrder []byte) (Verdict, error) {
	required := slices.Concat(report.FailToPass, report.PassToPass)
	if len(report.FailToPass) == 0 {
		return Verdict{}, errors.New("the artifact's report has no fail-to-pass test; validate it first")
	}
	out := Verdict{Tests: map[string]TestStatus{}}
	for _, id := range required {
		out.Tests[id] = Missing
	}
	unsolved := func(format string, args ...any) (Verdict, error) {
		out.Reason = fmt.Sprintf(format, args...)
		return out, nil
	}

	given, err := v.repo.solverOverlay(ctx, a, secondOrder)
	if err != nil {
		return Verdict{}, err
	}
	patched, notes := given, []string(nil)
	if len(bytes.TrimSpace(patch)) == 0 {
		notes = []string{"the patch is empty"}
	} else {
		filtered, err := v.repo.filterPatch(given, a, patch)
		if err == nil && len(filtered.patch.files) > 0 {
			patched, err = v.repo.apply(ctx, given, filtered.patch)
		}
		if isOutcome(err) {
			return unsolved("refused: %v", err)
		}
		if err != nil {
			return Verdict{}, err
		}
		notes = filtered.notes
	}

	key := a.ID() + strings.Join(required, "\x00")
	j, _, err := v.judges.do(ctx, key, func() (*judge, bool, error) {
		j, err := v.newJudge(uncounted(ctx), a, required)
		return j, true, err
	})
	if err != nil {
		return Verdict{}, err
	}
	seed := fmt.Sprintf("%s\x00%s\x00%s", a.ID(), patch, secondOrder)
	tree, sentinels, err := v.repo.addSentinels(patched.without(j.oracle.owns), j.sentinelFiles, seed)
	if err != nil {
		return Verdict{}, err
	}
	log, res, err := v.runTree(ctx, tree, a)
	var bad *badRun
	if errors.As(err, &bad) {
		return unsolved("%s", bad.seen)
	}
	if err != nil {
		return Verdict{}, err
	}

	tampered := ""
	for _, s := range sentinels {
		if why := s.check(res, j.intact); why != "" && tampered == "" {
			tampered = why
		}
	}
	for id, passed := range res {
		if _, known := out.Tests[id]; !known {
			out.Unknown = append(out.Unknown, id)
			continue
		}
		out.Tests[id] = Failed
		if passed {
			out.Tests[id] = Passed
		}
	}
	slices.Sort(out.Unknown)
	if failing := notPassing(res, required); len(failing) > 0 {
		return unsolved("%s", withNotes(fmt.Sprintf("%d of %d tests do not pass: %s", len(failing), len(required), some(failing)), notes))
	}
	if tampered == "" {
		tampered = j.tampered(log)
	}
	if tampered != "" {
		return unsolved("the test run was tampered with: %s", tampered)
	}
	if j.reversible {
		reversed, err := v.runParser(ctx, a.TestParser, reverseLines(log))
		if onlyInfrastructure(err) != nil {
			return Verdict{}, err
		}
		if failing := notPassing(reversed, required); len(failing) > 0 {
			return unsolved("the test run was tampered with: the log holds two results for %s", some(failing))
		}
	}
	if len(out.Unknown) > 0 {
		notes = append(notes, fmt.Sprintf("%d results are of tests that the original run does not have: %s", len(out.Unknown), some(out.Unknown)))
	}
	out.Solved = true
	out.Reason = withNotes(fmt.Sprintf("all %d tests pass", len(required)), notes)
	return out, nil
}

func withNotes(reason string, notes []string) string {
	return strings.Join(append([]string{reason}, notes...), "; ")
}
