package selfplay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/ssr-go/ssr/rollout"
)

// Strategy is how an injector is asked to break the code (paper section 2.3).
type Strategy string

const (
	// Removal deletes hunks or files and keeps the rest loadable.
	Removal Strategy = "removal"
	// History undoes chosen past changes.
	History Strategy = "history"
	// Direct leaves the choice to the policy; the paper found that it collapses
	// to one-liners, so it is for ablations.
	Direct Strategy = "direct"
)

// Target is where an injector is told to aim, so that injections spread over
// the repository. Function may be empty.
type Target struct {
	File     string `json:"file"`
	Function string `json:"function,omitempty"`
}

// Injection is an injector's task.
type Injection struct {
	Strategy     Strategy
	Requirements Requirements
	// Target is nil where the injector chooses freely.
	Target *Target
	// ScriptTimeout is what the test script may take (default 90 s).
	ScriptTimeout time.Duration
}

// InjectorEnv is the world of an injector's episode: the original repository
// with its history. The episode ends with the first submit that names five
// readable files.
type InjectorEnv struct {
	bench
	repo  *Repo
	task  Injection
	owner string
	tree  *Tree

	artifact  Artifact
	submitted bool
}

// NewInjectorEnv makes an injector's world over repo. owner labels its sandbox.
func NewInjectorEnv(opts EnvOptions, repo *Repo, task Injection, owner string) *InjectorEnv {
	return &InjectorEnv{bench: bench{opts: opts.withDefaults()}, repo: repo, task: task, owner: owner}
}

// Artifact is what was submitted; false when nothing was.
func (e *InjectorEnv) Artifact() (Artifact, bool) { return e.artifact, e.submitted }

func (e *InjectorEnv) Start(ctx context.Context) ([]rollout.Message, error) {
	tree, err := e.repo.InjectorTree(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare the injector's tree: %w", err)
	}
	e.tree = tree
	if err := e.start(ctx, tree.Dir, e.owner); err != nil {
		return nil, err
	}
	return InjectorPrompt(e.opts, e.task)
}

// InjectorPrompt is the first prompt of an injector's episode.
func InjectorPrompt(opts EnvOptions, task Injection) ([]rollout.Message, error) {
	opts = opts.withDefaults()
	task.Requirements = task.Requirements.withDefaults()
	timeout := task.ScriptTimeout
	if timeout <= 0 {
		timeout = 90 * time.Second
	}
	d := injectorData{
		Strategy: task.Strategy, Target: task.Target, Requirements: task.Requirements,
		ScriptSeconds: int(timeout.Seconds()),
		SubmitHint:    "Name the five files' paths, one a line, or nothing if they lie in the repository's root under the names above.",
	}
	d.Names.TestScript, d.Names.TestFiles, d.Names.TestParser = TestScriptName, TestFilesName, TestParserName
	d.Names.BugInject, d.Names.TestWeaken = BugInjectName, TestWeakenName
	text, err := opts.Prompts.render(injectorTemplate, d)
	if err != nil {
		return nil, err
	}
	return opts.Prompts.messages(opts.Protocol, opts.Limits.Command, strings.Join(PartNames(), "\n"), text)
}

func (e *InjectorEnv) Step(ctx context.Context, a rollout.Action) (rollout.Feedback, error) {
	c := e.parse(a)
	if c.problem != nil {
		return e.malformed(a, c.problem)
	}
	if c.Name == ToolSubmit {
		if err := e.submit(ctx, c.Body); err != nil {
			if own := (*policyError)(nil); errors.As(err, &own) {
				return e.feedback(a, ToolSubmit, problem(own))
			}
			return rollout.Feedback{}, err
		}
		return rollout.Feedback{Tool: ToolSubmit, Done: true, Outcome: OutcomeSubmitted}, nil
	}
	obs, handled, err := e.act(ctx, c.Call)
	if err != nil {
		return rollout.Feedback{}, err
	}
	if !handled {
		return e.malformed(a, noSuchTool(c.Name))
	}
	return e.feedback(a, c.Name, obs)
}

// policyError is the policy's own mistake, answered with an observation.
type policyError struct{ error }

// submit reads the artifact out of the sandbox.
func (e *InjectorEnv) submit(ctx context.Context, body string) error {
	paths, err := submittedPaths(body)
	if err != nil {
		return &policyError{err}
	}
	a, err := ArtifactFrom(func(name string) ([]byte, error) {
		p := name
		if paths != nil {
			if p = paths[name]; p == "" {
				return nil, fs.ErrNotExist
			}
		}
		return e.readSubmitted(ctx, p)
	})
	var bad *ArtifactError
	if errors.As(err, &bad) {
		return &policyError{fmt.Errorf("%s: %s; nothing was submitted", bad.File, bad.Reason)}
	}
	if err != nil {
		return fmt.Errorf("read the submitted artifact: %w", err)
	}
	e.artifact, e.submitted = a, true
	return nil
}

// readSubmitted reads one file of the workspace, links that leave it refused.
func (e *InjectorEnv) readSubmitted(ctx context.Context, p string) ([]byte, error) {
	res, err := e.script(ctx, readScript, p, nil)
	switch {
	case err != nil:
		return nil, err
	case res.Exit == 93:
		return nil, fs.ErrNotExist
	case fileProblem(res, p) != nil:
		return nil, &ArtifactError{File: p, Reason: fileProblem(res, p).Error()}
	}
	return res.Stdout, nil
}

// submittedPaths reads the body of a submit: nil for none (the usual names in
// the root), else which path holds which part. Files are told apart by their
// names, or by their order when all five are given under other names.
func submittedPaths(body string) (map[string]string, error) {
	var given []string
	for line := range strings.Lines(body) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		p, err := workspacePath(line)
		if err != nil {
			return nil, err
		}
		given = append(given, p)
	}
	if len(given) == 0 {
		return nil, nil
	}
	names := PartNames()
	if len(given) != len(names) {
		return nil, fmt.Errorf("submit names %d files; give the paths of all five (%s), one a line, or none", len(given), strings.Join(names, ", "))
	}
	byName := map[string]string{}
	for _, p := range given {
		if i := slices.IndexFunc(parts, func(q part) bool { return path.Base(p) == q.name || path.Base(p) == q.alias }); i >= 0 {
			byName[parts[i].name] = p
		}
	}
	if len(byName) != len(names) {
		for i, n := range names {
			byName[n] = given[i]
		}
	}
	return byName, nil
}

func (e *InjectorEnv) Close() error {
	err := e.bench.Close()
	if e.tree != nil {
		e.tree.Release()
		e.tree = nil
	}
	return err
}

var _ rollout.Env = (*InjectorEnv)(nil)
