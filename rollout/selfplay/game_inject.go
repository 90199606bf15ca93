package selfplay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/ssr-go/ssr/rollout"
)

// FailUnplayed is the failure of an injection whose bug no solver group was
// drawn for, or whose solver group was lost: its reward is unknown.
const FailUnplayed = "unplayed"

// InjectorDetail is the Detail of an injector's trajectory.
type InjectorDetail struct {
	Repo         string       `json:"repo"`
	Strategy     Strategy     `json:"strategy"`
	Target       *Target      `json:"target,omitempty"`
	Requirements Requirements `json:"requirements"`
	// Bug and Report are those of a submitted artifact; Bug is "" when it is not valid.
	Bug    string  `json:"bug,omitempty"`
	Report *Report `json:"report,omitempty"`
	// SolveRate of the bug's solver group, nil while unknown.
	SolveRate *float64 `json:"solve_rate,omitempty"`
	// Settled: the reward is final.
	Settled bool `json:"settled"`
}

// injectorPlan is the task of one injector group.
type injectorPlan struct {
	id        string
	world     *world
	injection Injection
}

// plan draws an injector group's repository, strategy, requirements and target.
func (s *stepPlay) plan(index int) injectorPlan {
	draw := Draw(s.opts.Seed, "injector", s.step, index)
	w := s.worlds[draw.IntN(len(s.worlds))]
	p := injectorPlan{id: injectorGroupID(s.step, index), world: w}
	p.injection = Injection{
		Strategy:      drawStrategy(draw, s.opts.Strategies, func(Strategy) bool { return true }),
		Requirements:  drawRequirements(draw, s.opts.Requirements, s.opts.RequirementsMax),
		ScriptTimeout: s.opts.Validation.Timeout,
	}
	if targets := w.Targets[p.injection.Strategy]; len(targets) > 0 {
		t := targets[draw.IntN(len(targets))]
		p.injection.Target = &t
	}
	return p
}

func drawRequirements(draw *rand.Rand, low, high Requirements) Requirements {
	between := func(a, b int) int { return a + draw.IntN(max(b-a, 0)+1) }
	return Requirements{
		MinPassingTests: between(low.MinPassingTests, high.MinPassingTests),
		MinChangedFiles: between(low.MinChangedFiles, high.MinChangedFiles),
		MinFailingTests: between(low.MinFailingTests, high.MinFailingTests),
	}
}

// inject plays the injector groups, the solver groups of their bugs, and the
// second-order groups.
func (s *stepPlay) inject() {
	n := s.opts.InjectorGroups
	bugs := make([][]made, n) // valid ones, by injector group
	var injected sync.WaitGroup
	injected.Add(n)
	drawn := make(chan struct{}) // closed once allowed is known
	var allowed map[string]bool  // nil: every bug
	for i := range n {
		s.all.Go(func() {
			group := func() *rollout.Group {
				defer injected.Done()
				g, ok := s.injectorGroup(s.plan(i))
				if !ok {
					return nil
				}
				if bugs[i], ok = s.validBugs(g); !ok {
					return nil
				}
				return g
			}()
			if group == nil || len(bugs[i]) == 0 {
				return
			}
			if s.opts.MaxSolverGroups > 0 {
				<-drawn
			}
			s.settle(group, bugs[i], allowed)
		})
	}
	s.all.Go(func() {
		injected.Wait()
		defer close(drawn)
		if s.ctx.Err() != nil || s.opts.Signal == SignalValidation && s.opts.Mode == InjectionOnly {
			return
		}
		var ids []string
		for _, group := range bugs {
			for _, m := range group {
				ids = append(ids, m.bug.ID)
			}
		}
		slices.Sort(ids)
		ids = slices.Compact(ids)
		if most := s.opts.MaxSolverGroups; most > 0 {
			ids = take(Draw(s.opts.Seed, "solver groups", s.step), ids, most)
			allowed = map[string]bool{}
			for _, id := range ids {
				allowed[id] = true
			}
		}
		draw := Draw(s.opts.Seed, "second order", s.step)
		for _, r := range take(draw, s.secondOrder(), secondOrderGroups(s.opts.SecondOrderFraction, len(ids))) {
			if bug, ok := s.load(r); ok {
				s.attempt(r.world, bug, false)
			}
		}
	})
}

// made is a valid bug and the trajectory that made it.
type made struct {
	world *world
	bug   Bug
	by    *rollout.Trajectory
}

// injectorGroup plays an injector group, or takes it over from an interrupted
// attempt. Where it has valid bugs their rewards are still open.
func (s *stepPlay) injectorGroup(p injectorPlan) (*rollout.Group, bool) {
	if g := s.done[p.id]; g != nil {
		return g, true
	}
	g := &rollout.Group{ID: p.id, Role: rollout.Injector}
	tasks := make([]rollout.Task, s.opts.InjectorsPerPrompt)
	for i := range tasks {
		id := fmt.Sprintf("%s-a%02d", p.id, i)
		tasks[i] = rollout.Task{ID: id, Group: p.id, Role: rollout.Injector, Step: s.step,
			Env: func() (rollout.Env, error) {
				return NewInjectorEnv(s.opts.Env, p.world.Repo, p.injection, id), nil
			},
			Score: func(ctx context.Context, env rollout.Env, t *rollout.Trajectory) error {
				return s.scoreInjector(ctx, p, env.(*InjectorEnv), t)
			}}
	}
	ctx, sandboxes := countSandboxes(s.ctx)
	if err := s.runner.Run(ctx, tasks, func(t *rollout.Trajectory) { g.Trajectories = append(g.Trajectories, t) }); err != nil {
		s.cancel(err)
		return nil, false
	}
	sortTrajectories(g)
	return g, s.end(g, episodeCounts(g, sandboxes))
}

// scoreInjector validates what was submitted. A valid bug is pooled; its reward
// stays open unless validity alone is rewarded.
func (s *stepPlay) scoreInjector(ctx context.Context, p injectorPlan, env *InjectorEnv, t *rollout.Trajectory) error {
	d := InjectorDetail{Repo: p.world.Name, Strategy: p.injection.Strategy, Target: p.injection.Target, Requirements: p.injection.Requirements, Settled: true}
	t.Reward = InvalidReward
	if a, ok := env.Artifact(); ok {
		report, err := p.world.solvers.Validator.Validate(ctx, a, p.injection.Requirements)
		if err != nil {
			return fmt.Errorf("validate the artifact of %s: %w", t.ID, err)
		}
		d.Report = &report
		t.Outcome = injectionOutcome(report)
		if report.Valid {
			bug, _, err := p.world.Pool.Add(a, report)
			if err != nil {
				return fmt.Errorf("pool the bug of %s: %w", t.ID, err)
			}
			d.Bug = bug.ID
			if s.opts.Signal == SignalValidation {
				t.Reward = 1
			} else {
				// Provisional: the reward of a bug that tells nothing.
				t.Reward, d.Settled = -s.opts.Alpha, false
			}
		}
	}
	t.Detail = d
	return nil
}

// validBugs reads the bugs of a group's valid trajectories from the pool and,
// where solvers play, starts their groups unless the draw has to be waited for.
func (s *stepPlay) validBugs(g *rollout.Group) ([]made, bool) {
	var all []made
	for _, t := range g.Trajectories {
		if t.Outcome != OutcomeValid || t.Status == rollout.Cancelled || t.Status == rollout.Failed && t.FailureKind() != FailUnplayed {
			continue
		}
		d, err := DetailOf[InjectorDetail](t)
		if err != nil {
			s.cancel(err)
			return nil, false
		}
		i := slices.IndexFunc(s.worlds, func(w *world) bool { return w.Name == d.Repo })
		if i < 0 {
			s.cancel(fmt.Errorf("trajectory %s is of repository %q, which is not part of this run", t.ID, d.Repo))
			return nil, false
		}
		bug, ok := s.load(bugRef{s.worlds[i], d.Bug})
		if !ok {
			return nil, false
		}
		all = append(all, made{s.worlds[i], bug, t})
		if s.opts.Mode == SelfPlay && s.opts.MaxSolverGroups <= 0 {
			s.attempt(s.worlds[i], bug, false)
		}
	}
	return all, true
}

// settle waits for the solver groups of a group's bugs and reports the group
// again with its rewards, unless an interrupted attempt had settled it already.
func (s *stepPlay) settle(g *rollout.Group, bugs []made, allowed map[string]bool) {
	if s.opts.Mode != SelfPlay {
		return
	}
	changed := false
	for _, m := range bugs {
		var a *attempt
		if allowed == nil || allowed[m.bug.ID] {
			a = s.attempt(m.world, m.bug, false)
			<-a.ended
			if a.group == nil {
				return // cancelled
			}
		}
		d, err := DetailOf[InjectorDetail](m.by)
		if err != nil {
			s.cancel(err)
			return
		}
		if d.Settled {
			continue
		}
		d.Settled, changed = true, true
		m.by.Status, m.by.Failure = rollout.Scored, ""
		switch rate, known := 0.0, false; {
		case a == nil:
			m.by.Status, m.by.Failure = rollout.Failed, FailUnplayed+": no solver group was drawn for its bug"
		default:
			if rate, known = solveRate(a.group); !known {
				m.by.Status, m.by.Failure = rollout.Failed, FailUnplayed+": every attempt at its bug was lost"
				break
			}
			d.SolveRate = &rate
			m.by.Reward = s.opts.InjectorReward(m.bug, rate)
		}
		m.by.Detail = d
	}
	if changed {
		s.end(g, map[string]float64{})
	}
}

// take draws n of list without replacement and returns them in list's order.
func take[T any](draw *rand.Rand, list []T, n int) []T {
	if n >= len(list) {
		return list
	}
	picked := draw.Perm(len(list))[:max(n, 0)]
	slices.Sort(picked)
	out := make([]T, len(picked))
	for i, p := range picked {
		out[i] = list[p]
	}
	return out
}
