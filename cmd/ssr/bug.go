package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/rollout/selfplay"
)

type bugCmd struct {
	Validate   bugValidateCmd   `cmd:"" help:"Run the seven checks on an artifact. Exit status 0: valid, 1: refused."`
	Verdict    bugVerdictCmd    `cmd:"" help:"Judge a patch for a bug. Exit status 0 when the verdict ran, solved or not."`
	List       bugListCmd       `cmd:"" help:"List the bugs of a run or of a folder."`
	Show       bugShowCmd       `cmd:"" help:"Show a bug: its report and both diffs."`
	SolverTree bugSolverTreeCmd `cmd:"" help:"Write the folder that a solver of a bug starts from."`
}

// requirementFlags are the thresholds of validation.
type requirementFlags struct {
	MinPassingTests int `default:"5" help:"Tests that the original must pass."`
	MinChangedFiles int `default:"1" help:"Files that the injection must change."`
	MinFailingTests int `default:"1" help:"Tests that the injection must break."`
}

func (f requirementFlags) requirements() selfplay.Requirements {
	return selfplay.Requirements{MinPassingTests: f.MinPassingTests, MinChangedFiles: f.MinChangedFiles, MinFailingTests: f.MinFailingTests}
}

// judgeFlags are shared by validate and verdict.
type judgeFlags struct {
	Repo     string        `required:"" type:"existingdir" help:"The original repository."`
	Artifact string        `required:"" type:"existingdir" help:"The artifact's folder: test_script.sh, test_files.txt, test_parser.py, bug_inject.diff, test_weaken.diff."`
	Timeout  time.Duration `default:"90s" help:"Limit of one run of the test script."`
	Parallel int           `help:"Sandboxes alive at once; 0 means one per core."`
	sandboxFlags
	requirementFlags
	jsonFlag
}

// validator opens what both commands need; close it after use.
func (f *judgeFlags) validator(ctx context.Context) (*selfplay.Validator, *world, error) {
	w, err := openWorld(ctx, f.Repo, f.config())
	if err != nil {
		return nil, nil, err
	}
	return selfplay.NewValidator(w.backend, w.repo, selfplay.Options{Timeout: f.Timeout, Parallel: f.Parallel, Owner: "ssr-bug"}), w, nil
}

// validate runs the checks; a folder that is no artifact is refused by the
// check that its first bad file belongs to.
func (f *judgeFlags) validate(ctx context.Context, v *selfplay.Validator) (selfplay.Artifact, selfplay.Report, error) {
	a, err := selfplay.LoadArtifact(f.Artifact)
	var bad *selfplay.ArtifactError
	if errors.As(err, &bad) {
		return a, unreadable(bad), nil
	}
	if err != nil {
		return a, selfplay.Report{}, err
	}
	report, err := v.Validate(ctx, a, f.requirements())
	return a, report, err
}

// unreadable is the report of an artifact that lacks a usable file.
func unreadable(bad *selfplay.ArtifactError) selfplay.Report {
	checks := []struct {
		name selfplay.CheckName
		file string
	}{
		{selfplay.CheckTestFiles, selfplay.TestFilesName}, {selfplay.CheckParser, selfplay.TestParserName},
		{selfplay.CheckScript, selfplay.TestScriptName}, {selfplay.CheckScope, selfplay.BugInjectName},
		{selfplay.CheckBug, ""}, {selfplay.CheckWeakening, selfplay.TestWeakenName}, {selfplay.CheckInverseMutation, ""},
	}
	r := selfplay.Report{FailToPass: []string{}, PassToPass: []string{}}
	for _, c := range checks {
		check := selfplay.Check{Name: c.name}
		if c.file == bad.File {
			no := false
			check.OK, check.Expected, check.Seen = &no, "a readable "+c.file, bad.Reason
		}
		r.Checks = append(r.Checks, check)
	}
	return r
}

type bugValidateCmd struct {
	judgeFlags
	Write bool `help:"Write report.json into the artifact's folder."`
}

func (c *bugValidateCmd) Run(ctx context.Context, o output) (err error) {
	v, w, err := c.validator(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, report, err := c.validate(ctx, v)
	if err != nil {
		return err
	}
	if c.Write {
		if err := selfplay.SaveReport(c.Artifact, report); err != nil {
			return err
		}
	}
	if c.JSON {
		err = printJSON(o.out, report)
	} else {
		printReport(o.out, report)
	}
	if err == nil && !report.Valid {
		err = errRefused
	}
	return err
}

// printReport shows the checks and what they found.
func printReport(out *os.File, r selfplay.Report) {
	for _, c := range r.Checks {
		mark := "not reached"
		if c.OK != nil {
			mark = map[bool]string{true: "ok", false: "refused"}[*c.OK]
		}
		fmt.Fprintf(out, "%-17s %-12s%s\n", c.Name, mark, ui.Printable(c.Seen))
	}
	if !r.Valid {
		for _, c := range r.Checks {
			if c.Name == r.Refusal() {
				fmt.Fprintf(out, "refused by the check %s, which expects: %s\n", c.Name, ui.Printable(c.Expected))
			}
		}
		return
	}
	fmt.Fprintf(out, "valid: %d tests fail to pass, %d pass to pass\n", len(r.FailToPass), len(r.PassToPass))
	for _, id := range r.FailToPass {
		fmt.Fprintf(out, "  fails: %s\n", ui.Printable(id))
	}
}

type bugVerdictCmd struct {
	judgeFlags
	Patch       string `required:"" type:"existingfile" help:"The patch to judge, a git diff."`
	SecondOrder string `type:"existingfile" help:"The failed patch that a second-order bug has on top."`
}

func (c *bugVerdictCmd) Run(ctx context.Context, o output) (err error) {
	patch, err := os.ReadFile(c.Patch)
	if err != nil {
		return err
	}
	var second []byte
	if c.SecondOrder != "" {
		if second, err = os.ReadFile(c.SecondOrder); err != nil {
			return err
		}
	}
	v, w, err := c.validator(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	a, report, err := c.report(ctx, o, v)
	if err != nil {
		return err
	}
	if !report.Valid {
		return fmt.Errorf("the artifact in %s is not valid (check %s), so there is nothing to judge; see ssr bug validate", c.Artifact, report.Refusal())
	}
	verdict, err := v.Verdict(ctx, a, report, patch, second)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o.out, verdict)
	}
	word := map[bool]string{true: "solved", false: "not solved"}[verdict.Solved]
	fmt.Fprintf(o.out, "%s: %s\n", word, ui.Printable(verdict.Reason))
	tests, ran := slices.Sorted(maps.Keys(verdict.Tests)), false
	for _, id := range tests {
		ran = ran || verdict.Tests[id] != selfplay.Missing
	}
	for _, id := range tests {
		if s := verdict.Tests[id]; ran && s != selfplay.Passed {
			fmt.Fprintf(o.out, "  %-8s %s\n", s, ui.Printable(id))
		}
	}
	return nil
}

// report takes the artifact's own report.json, or validates it when there is none.
func (c *bugVerdictCmd) report(ctx context.Context, o output, v *selfplay.Validator) (selfplay.Artifact, selfplay.Report, error) {
	report, err := selfplay.LoadReport(c.Artifact)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(o.err, "%s has no report.json: validating it first; ssr bug validate --write keeps one\n", c.Artifact)
		return c.validate(ctx, v)
	}
	if err != nil {
		return selfplay.Artifact{}, report, err
	}
	a, err := selfplay.LoadArtifact(c.Artifact)
	return a, report, err
}

type bugListCmd struct {
	Dir string `arg:"" name:"run" type:"existingdir" help:"A run's folder, or a folder of bugs."`
	jsonFlag
}

// bugLine is one bug of a list.
type bugLine struct {
	ID         string `json:"id"`
	Order      int    `json:"order"`
	Files      int    `json:"files"`
	FailToPass int    `json:"fail_to_pass"`
	PassToPass int    `json:"pass_to_pass"`
	Dir        string `json:"dir"`
}

func (c *bugListCmd) Run(o output) error {
	bugs, dirs, err := loadBugs(c.Dir)
	if err != nil {
		return err
	}
	lines := []bugLine{}
	for i, b := range bugs {
		files := 0
		if p, err := selfplay.ParsePatch(b.Artifact.BugInject); err == nil {
			files = len(p.Paths())
		}
		lines = append(lines, bugLine{b.ID, b.Order(), files, len(b.Report.FailToPass), len(b.Report.PassToPass), dirs[i]})
	}
	if c.JSON {
		return printJSON(o.out, lines)
	}
	t := ui.NewTable(o.out, table.Row{"bug", "order", "files", "fail to pass", "pass to pass"}, 2, 3, 4, 5)
	for _, l := range lines {
		t.AppendRow(table.Row{l.ID, l.Order, l.Files, l.FailToPass, l.PassToPass})
	}
	t.Render()
	return check(fmt.Fprintf(o.out, "%d bugs\n", len(lines)))
}

// bugsDir is the pool's place in a run's folder.
const bugsDir = "bugs"

// loadBugs reads the bugs below dir, or below its folder "bugs" when it is a
// run's, sorted by folder.
func loadBugs(dir string) (bugs []selfplay.Bug, dirs []string, err error) {
	if sub := filepath.Join(dir, bugsDir); isDir(sub) {
		dir = sub
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") || !exists(filepath.Join(path, selfplay.ReportName)) {
			continue
		}
		b, err := selfplay.LoadBug(path)
		if err != nil {
			return nil, nil, err
		}
		bugs, dirs = append(bugs, b), append(dirs, path)
	}
	return bugs, dirs, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

type bugShowCmd struct {
	Dir string `arg:"" type:"existingdir" help:"The bug's folder."`
	jsonFlag
}

func (c *bugShowCmd) Run(o output) error {
	b, err := selfplay.LoadBug(c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; ssr bug validate --write makes the report of an artifact", err)
	}
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o.out, map[string]any{
			"id": b.ID, "order": b.Order(), "report": b.Report,
			selfplay.TestScriptName: string(b.Artifact.TestScript), selfplay.TestFilesName: string(b.Artifact.TestFiles),
			selfplay.TestParserName: string(b.Artifact.TestParser), selfplay.BugInjectName: string(b.Artifact.BugInject),
			selfplay.TestWeakenName: string(b.Artifact.TestWeaken), selfplay.FailedPatchName: string(b.Failed),
		})
	}
	fmt.Fprintf(o.out, "bug %s, order %d\n\n", b.ID, b.Order())
	printReport(o.out, b.Report)
	for _, part := range []struct {
		name string
		data []byte
	}{
		{selfplay.BugInjectName, b.Artifact.BugInject}, {selfplay.TestWeakenName, b.Artifact.TestWeaken},
		{selfplay.FailedPatchName, b.Failed}, {selfplay.TestScriptName, b.Artifact.TestScript},
	} {
		if part.data == nil {
			continue
		}
		fmt.Fprintf(o.out, "\n── %s\n", part.name)
		for line := range strings.Lines(string(part.data)) {
			fmt.Fprintln(o.out, ui.Printable(strings.TrimRight(line, "\n")))
		}
	}
	return nil
}
