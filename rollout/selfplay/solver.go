package selfplay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/sandbox"
)

// SolverEnv is the world of a solver's episode: the broken repository without
// history. It ends with the last allowed submit, or with a turn that calls no
// tool; the working tree's difference at that moment is the patch.
type SolverEnv struct {
	bench
	repo  *Repo
	bug   Bug
	owner string
	tree  *Tree

	patch     []byte
	submitted int
}

// NewSolverEnv makes a solver's world over a bug of repo. owner labels its sandbox.
func NewSolverEnv(opts EnvOptions, repo *Repo, bug Bug, owner string) *SolverEnv {
	return &SolverEnv{bench: bench{opts: opts.withDefaults()}, repo: repo, bug: bug, owner: owner}
}

// Patch is the last patch handed in; false when there was none. An empty patch
// was handed in by who changed nothing.
func (e *SolverEnv) Patch() ([]byte, bool) { return e.patch, e.submitted > 0 }

func (e *SolverEnv) Start(ctx context.Context) ([]rollout.Message, error) {
	tree, err := e.repo.SolverTree(ctx, e.bug.Artifact, e.bug.Failed)
	if err != nil {
		return nil, fmt.Errorf("prepare the solver's tree of bug %s: %w", e.bug.ID, err)
	}
	e.tree = tree
	if err := e.start(ctx, tree.Dir, e.owner); err != nil {
		return nil, err
	}
	spec, err := e.repo.Specification(ctx, e.bug.Artifact)
	if err != nil {
		return nil, fmt.Errorf("render the specification of bug %s: %w", e.bug.ID, err)
	}
	issue, err := e.opts.Prompts.render(specificationTemplate, specificationData{Diff: strings.TrimRight(string(spec), "\n")})
	if err != nil {
		return nil, err
	}
	return IssuePrompt(e.opts, issue)
}

// IssuePrompt is the first prompt of a solver's episode for any issue text, be
// it a self-play specification or written by people.
func IssuePrompt(opts EnvOptions, issue string) ([]rollout.Message, error) {
	opts = opts.withDefaults()
	text, err := opts.Prompts.render(issueTemplate, issueData{Workdir: sandbox.Workdir, Issue: issue})
	if err != nil {
		return nil, err
	}
	return opts.Prompts.messages(opts.Protocol, opts.Limits.Command, "", text)
}

func (e *SolverEnv) Step(ctx context.Context, a rollout.Action) (rollout.Feedback, error) {
	c := e.parse(a)
	if c.problem != nil {
		// A complete turn that makes no attempt at a call means: I am done.
		if errors.Is(c.problem, token.ErrNoCall) && !a.Truncated && !strings.Contains(a.Text, "<tool") && !strings.Contains(a.Text, "</tool") {
			if err := e.harvest(ctx); err != nil {
				return rollout.Feedback{}, err
			}
			return rollout.Feedback{Done: true, Outcome: OutcomeEnded}, nil
		}
		return e.malformed(a, c.problem)
	}
	if c.Name == ToolSubmit {
		if err := e.harvest(ctx); err != nil {
			return rollout.Feedback{}, err
		}
		if e.submitted >= e.opts.Submissions {
			return rollout.Feedback{Tool: ToolSubmit, Done: true, Outcome: OutcomeSubmitted}, nil
		}
		return e.feedback(a, ToolSubmit, observation{output: fmt.Sprintf(
			"submission %d of %d was recorded; submit again after further changes, or end with a turn without a tool call", e.submitted, e.opts.Submissions)})
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

// harvest records the working tree's difference as the patch.
func (e *SolverEnv) harvest(ctx context.Context) error {
	changes, err := e.box.Harvest(ctx)
	if err != nil {
		return fmt.Errorf("harvest the working tree: %w", err)
	}
	patch, err := e.tree.Diff(ctx, changes)
	if err != nil {
		return fmt.Errorf("diff the working tree: %w", err)
	}
	e.patch = patch
	e.submitted++
	return nil
}

func (e *SolverEnv) Close() error {
	err := e.bench.Close()
	if e.tree != nil {
		e.tree.Release()
		e.tree = nil
	}
	return err
}

var _ rollout.Env = (*SolverEnv)(nil)

// Solvers plays groups of attempts at bugs of one repository. Its fields are
// read-only; it is safe for concurrent use.
type Solvers struct {
	Runner    *rollout.Runner
	Env       EnvOptions
	Repo      *Repo
	Validator *Validator
}

// SolverDetail is the Detail of a solver's trajectory.
type SolverDetail struct {
	Bug   string `json:"bug"`
	Order int    `json:"order"`
	// Patch is what was handed in, "" for nothing.
	Patch PatchText `json:"patch"`
	// Verdict is nil where nothing was handed in.
	Verdict *Verdict `json:"verdict,omitempty"`
}

// PatchText is a patch, byte for byte. In JSON it is a string or, where it is
// not UTF-8, which a string there cannot hold, {"base64": "…"}: a patch that
// was read back must give the same bug as the one that was handed in.
type PatchText string

type encodedPatch struct {
	Base64 []byte `json:"base64"`
}

// MarshalJSON implements json.Marshaler.
func (p PatchText) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(p)) {
		return json.Marshal(string(p))
	}
	return json.Marshal(encodedPatch{[]byte(p)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *PatchText) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte("{")) {
		var e encodedPatch
		err := json.Unmarshal(data, &e)
		*p = PatchText(e.Base64)
		return err
	}
	return json.Unmarshal(data, (*string)(p))
}

// Play has the policy attempt a bug and judges each attempt in a fresh sandbox.
// The group's trajectories are ordered by ID, which is group-aNN. An error means
// that ctx ended.
func (s *Solvers) Play(ctx context.Context, group string, step int, bug Bug, attempts int) (*rollout.Group, error) {
	g := &rollout.Group{ID: group, Role: rollout.Solver}
	tasks := make([]rollout.Task, attempts)
	for i := range tasks {
		id := fmt.Sprintf("%s-a%02d", group, i)
		tasks[i] = rollout.Task{ID: id, Group: group, Role: rollout.Solver, Step: step,
			Env: func() (rollout.Env, error) { return NewSolverEnv(s.Env, s.Repo, bug, id), nil },
			Score: func(ctx context.Context, env rollout.Env, t *rollout.Trajectory) error {
				return scoreSolver(ctx, s.Validator, bug, env.(*SolverEnv), t)
			}}
	}
	err := s.Runner.Run(ctx, tasks, func(t *rollout.Trajectory) { g.Trajectories = append(g.Trajectories, t) })
	sortTrajectories(g)
	return g, err
}

// scoreSolver judges what an episode handed in. An episode that overran its
// budget is unsolved without a verdict, and so is one that changed nothing: the
// bug's own validation saw its tests fail.
func scoreSolver(ctx context.Context, v *Validator, bug Bug, env *SolverEnv, t *rollout.Trajectory) error {
	d := SolverDetail{Bug: bug.ID, Order: bug.Order()}
	patch, ok := env.Patch()
	handedIn := ok && (t.Outcome == OutcomeSubmitted || t.Outcome == OutcomeEnded)
	if handedIn {
		d.Patch = PatchText(patch)
		d.Verdict = &Verdict{Reason: "the patch is empty"}
		if len(patch) > 0 {
			verdict, err := v.Verdict(ctx, bug.Artifact, bug.Report, patch, bug.Failed)
			if err != nil {
				return fmt.Errorf("verdict on bug %s: %w", bug.ID, err)
			}
			d.Verdict = &verdict
		}
		t.Outcome = OutcomeUnsolved
		if d.Verdict.Solved {
			t.Outcome = OutcomeSolved
		}
	}
	t.Reward = SolverReward(t.Outcome == OutcomeSolved)
	t.Detail = d
	return nil
}

func sortTrajectories(g *rollout.Group) {
	slices.SortFunc(g.Trajectories, func(a, b *rollout.Trajectory) int { return strings.Compare(a.ID, b.ID) })
}

// solveRate is the share of a group's scored attempts that solved its bug;
// false when none was scored.
func solveRate(g *rollout.Group) (float64, bool) {
	solved, scored := 0, 0
	for _, t := range g.Trajectories {
		if t.Status == rollout.Scored {
			scored++
			if t.Outcome == OutcomeSolved {
				solved++
			}
		}
	}
	if scored == 0 {
		return 0, false
	}
	return float64(solved) / float64(scored), true
}
