package selfplay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/sandbox"
)

// Mode is which roles play (the paper's ablations).
type Mode string

const (
	// SelfPlay: injectors make bugs, solvers attempt them, both are trained.
	SelfPlay Mode = "self-play"
	// RepairOnly: solvers attempt the bugs of a fixed pool.
	RepairOnly Mode = "repair-only"
	// InjectionOnly: injectors alone, rewarded for what validates.
	InjectionOnly Mode = "injection-only"
)

// InjectorSignal is what rewards an injector.
type InjectorSignal string

const (
	// SignalSolveRate is the paper's reward, which depends on the solver group.
	SignalSolveRate InjectorSignal = "solve-rate"
	// SignalValidation gives +1 to a valid bug and -1 to any other end.
	SignalValidation InjectorSignal = "validation"
)

// GameRepo is a repository to play in.
type GameRepo struct {
	// Name tells repositories apart in records.
	Name string
	Repo *Repo
	// Pool keeps the bugs made; in RepairOnly it is the fixed pool.
	Pool *Pool
	// Targets, where a strategy has any, are drawn from to tell an injector where to aim.
	Targets map[Strategy][]Target
}

// GameOptions are the settings of a Game.
type GameOptions struct {
	Mode Mode
	// Seed is the run's; with a step and an index it fixes every draw.
	Seed  uint64
	Repos []GameRepo
	// Env shapes the episodes; Env.Backend also validates and judges.
	Env        EnvOptions
	Validation Options
	// Requirements of validation; where RequirementsMax has a greater field, each
	// injector group draws its own between the two, both included.
	Requirements, RequirementsMax Requirements

	// InjectorGroups is how many injector groups a step has, InjectorsPerPrompt
	// how many episodes each.
	InjectorGroups, InjectorsPerPrompt int
	// SolversPerBug is how many attempts a bug gets (paper: 8).
	SolversPerBug int
	// MaxSolverGroups bounds a step's first-order solver groups, drawn by seed
	// among its valid bugs; an injection that is not drawn has no reward and is
	// masked. 0: no bound, and solvers need not wait for the last injector.
	MaxSolverGroups int
	// SolverGroups is how many solver groups a step of RepairOnly has.
	SolverGroups int
	// Resample is dynamic sampling in RepairOnly (DAPO, arXiv 2503.14476, section
	// 3.2): in at most so many further rounds a group without spread in its rewards
	// gets another beside it, of a first-order bug that the step has not drawn.
	// These are counted as "resampled_groups".
	Resample int
	// SecondOrderFraction of a step's solver groups attempt second-order bugs.
	SecondOrderFraction float64
	// Strategies are the weights of the draw (default: removal and history evenly).
	Strategies map[Strategy]float64
	// Signal rewards injectors (default: SignalSolveRate; InjectionOnly has SignalValidation).
	Signal InjectorSignal
	// Alpha of the injector's reward (default 0.8).
	Alpha float64
	// InjectorReward of SignalSolveRate rewards a valid bug by itself and by the share s in
	// [0, 1] of its attempts that solved it (default: the paper's, InjectorReward of Alpha
	// and s). It must be finite and depend on nothing else, so that a run that goes on
	// rewards alike. An artifact that is refused has InvalidReward.
	InjectorReward func(b Bug, s float64) float64
}

// Game plays the steps of a run. Play, State and Restore are called by one
// goroutine.
type Game struct {
	opts   GameOptions
	runner *rollout.Runner
	worlds []*world
	state  gameState
}

// world is a repository with what it takes to play in it.
type world struct {
	GameRepo
	solvers Solvers
}

// gameState is what carries over from step to step.
type gameState struct {
	// SecondOrder lists, by repository, the second-order bugs that may be drawn.
	// The pool on disk may hold more: those of a step that a crash undid.
	SecondOrder map[string][]string `json:"second_order"`
}

// NewGame checks the options and makes a game whose episodes runner plays.
func NewGame(runner *rollout.Runner, opts GameOptions) (*Game, error) {
	if err := errors.Join(opts.checkRepos(), opts.Check()); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	g := &Game{opts: opts, runner: runner, state: gameState{SecondOrder: map[string][]string{}}}
	g.opts.Env.Backend = countedBackend{opts.Env.Backend}
	g.opts.Env = g.opts.Env.withDefaults()
	for _, r := range opts.Repos {
		w := &world{GameRepo: r}
		w.solvers = Solvers{Runner: runner, Env: g.opts.Env, Repo: r.Repo, Validator: NewValidator(g.opts.Env.Backend, r.Repo, opts.Validation)}
		g.worlds = append(g.worlds, w)
		if opts.Mode == RepairOnly {
			g.state.SecondOrder[r.Name] = r.Pool.IDs(2)
		}
	}
	return g, nil
}

func (o GameOptions) withDefaults() GameOptions {
	o.Requirements = o.Requirements.withDefaults()
	if o.Mode == "" {
		o.Mode = SelfPlay
	}
	if o.Signal == "" {
		o.Signal = SignalSolveRate
	}
	if o.Mode == InjectionOnly {
		o.Signal = SignalValidation
	}
	if o.Alpha == 0 {
		o.Alpha = Alpha
	}
	if o.InjectorReward == nil {
		o.InjectorReward = func(_ Bug, s float64) float64 { return InjectorReward(o.Alpha, s) }
	}
	if len(o.Strategies) == 0 {
		o.Strategies = map[Strategy]float64{Removal: 1, History: 1}
	}
	return o
}

func (o GameOptions) checkRepos() error {
	if len(o.Repos) == 0 {
		return fmt.Errorf("game: no repository to play in")
	}
	names := map[string]bool{}
	for _, r := range o.Repos {
		if names[r.Name] {
			return fmt.Errorf("game: two repositories are called %q", r.Name)
		}
		names[r.Name] = true
		if o.Mode == RepairOnly && len(r.Pool.IDs(1)) == 0 {
			return fmt.Errorf("game: repair-only needs bugs, and the pool of %s has none", r.Name)
		}
	}
	return nil
}

// Check refuses what no game can be played by, whatever its repositories.
func (o GameOptions) Check() error {
	o = o.withDefaults()
	total := 0.
	for s, w := range o.Strategies {
		if s != Removal && s != History && s != Direct || !(w >= 0) || math.IsInf(w, 0) {
			return fmt.Errorf("game: strategy %q with weight %v; there are removal, history and direct, and weights are not negative", s, w)
		}
		total += w
	}
	if total == 0 {
		return errors.New("game: all weights of strategies are 0")
	}
	if o.Signal != SignalSolveRate && o.Signal != SignalValidation {
		return fmt.Errorf("game: no signal is called %q; there are %s and %s", o.Signal, SignalSolveRate, SignalValidation)
	}
	if !(o.Alpha > 0) || math.IsInf(o.Alpha, 0) {
		return fmt.Errorf("game: alpha is %v; it must be positive and finite", o.Alpha)
	}
	switch o.Mode {
	case SelfPlay, InjectionOnly:
		if o.InjectorGroups < 1 || o.InjectorsPerPrompt < 1 {
			return fmt.Errorf("game: %d injector groups of %d; both must be at least 1", o.InjectorGroups, o.InjectorsPerPrompt)
		}
	case RepairOnly:
		if o.SolverGroups < 1 {
			return fmt.Errorf("game: repair-only needs at least 1 solver group a step")
		}
	default:
		return fmt.Errorf("game: no mode is called %q; there are %s, %s and %s", o.Mode, SelfPlay, RepairOnly, InjectionOnly)
	}
	if o.Mode != InjectionOnly && o.SolversPerBug < 1 {
		return fmt.Errorf("game: %d solvers a bug; it must be at least 1", o.SolversPerBug)
	}
	if o.Resample < 0 || o.Resample > 0 && o.Mode != RepairOnly {
		return fmt.Errorf("game: resample is %d in %s; it is a number of rounds in %s, 0 for none", o.Resample, o.Mode, RepairOnly)
	}
	if !(o.SecondOrderFraction >= 0 && o.SecondOrderFraction < 1) {
		return fmt.Errorf("game: second-order fraction %v is not in [0, 1)", o.SecondOrderFraction)
	}
	return nil
}

// State is what must be kept with a checkpoint, beside the pool's folders.
func (g *Game) State() ([]byte, error) { return json.Marshal(g.state) }

// Restore goes back to a State, and removes what a crash left half-written in the pools
// that the game adds to.
func (g *Game) Restore(state []byte) error {
	var s gameState
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("game: restore state: %w", err)
	}
	if s.SecondOrder == nil {
		s.SecondOrder = map[string][]string{}
	}
	if g.opts.Mode != RepairOnly {
		for _, w := range g.worlds {
			if err := w.Pool.Clean(); err != nil {
				return fmt.Errorf("game: restore state: %w", err)
			}
		}
	}
	g.state = s
	return nil
}

// Solvers are the solver's side of the repository called name, for evaluation.
func (g *Game) Solvers(name string) (*Solvers, bool) {
	for _, w := range g.worlds {
		if w.Name == name {
			return &w.solvers, true
		}
	}
	return nil, false
}

// Play plays every task of a step. finish is called, by one goroutine at a time,
// whenever a group has ended, with figures to be summed over the step; its error
// ends the play. An injector group is finished twice when it has valid bugs:
// when its episodes ended, and again with its rewards. done holds what an
// interrupted attempt at the same step had finished, the last record of each
// group counting: it is neither played nor finished again.
//
// Groups, their order of trajectories and every draw depend on the options, the
// step, the state and the policy, not on which goroutine is faster.
func (g *Game) Play(ctx context.Context, step int, done []*rollout.Group, finish func(*rollout.Group, map[string]float64) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &stepPlay{Game: g, ctx: ctx, cancel: cancel, step: step, finish: finish,
		done: map[string]*rollout.Group{}, attempts: map[string]*attempt{}}
	for _, d := range done {
		if err := typedDetails(d); err != nil {
			return err
		}
		s.done[d.ID] = d
	}
	if g.opts.Mode == RepairOnly {
		s.repair()
	} else {
		s.inject()
	}
	s.all.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return s.pool()
}

// stepPlay is one call of Play.
type stepPlay struct {
	*Game
	ctx    context.Context
	cancel context.CancelCauseFunc
	step   int
	all    sync.WaitGroup
	done   map[string]*rollout.Group

	finishing sync.Mutex
	finish    func(*rollout.Group, map[string]float64) error

	mu       sync.Mutex
	attempts map[string]*attempt // by group id
}

// attempt is a solver group under way.
type attempt struct {
	world *world
	bug   Bug
	ended chan struct{}
	group *rollout.Group // set before ended is closed; nil when the play was cancelled
}

// end reports a group that was played.
func (s *stepPlay) end(group *rollout.Group, counts map[string]float64) bool {
	if s.ctx.Err() != nil {
		return false
	}
	s.finishing.Lock()
	defer s.finishing.Unlock()
	if err := s.finish(group, counts); err != nil {
		s.cancel(fmt.Errorf("record group %s: %w", group.ID, err))
		return false
	}
	return true
}

// attempt starts the solver group of a bug, once; resampled ones are counted.
func (s *stepPlay) attempt(w *world, bug Bug, resampled bool) *attempt {
	id := fmt.Sprintf("s%05d-b%s", s.step, bug.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.attempts[id]; a != nil {
		return a
	}
	a := &attempt{world: w, bug: bug, ended: make(chan struct{})}
	s.attempts[id] = a
	if group := s.done[id]; group != nil {
		a.group = group
		close(a.ended)
		return a
	}
	s.all.Go(func() {
		defer close(a.ended)
		ctx, sandboxes := countSandboxes(s.ctx)
		group, err := w.solvers.Play(ctx, id, s.step, bug, s.opts.SolversPerBug)
		if err != nil {
			s.cancel(err)
			return
		}
		counts := episodeCounts(group, sandboxes)
		if resampled {
			counts["resampled_groups"] = 1
		}
		if s.end(group, counts) {
			a.group = group
		}
	})
	return a
}

// pool keeps the failed patches of the step's first-order groups as
// second-order bugs, in the groups' order.
func (s *stepPlay) pool() error {
	if s.opts.Mode == RepairOnly {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(s.attempts)) {
		a := s.attempts[id]
		if a.bug.Order() != 1 {
			continue
		}
		for _, t := range a.group.Trajectories {
			d, err := DetailOf[SolverDetail](t)
			if err != nil {
				return err
			}
			if t.Status != rollout.Scored || t.Outcome != OutcomeUnsolved || d.Patch == "" {
				continue
			}
			bug, _, err := a.world.Pool.AddFailed(s.ctx, a.world.Repo, a.bug, []byte(d.Patch))
			if err != nil {
				return fmt.Errorf("pool the failed patch of %s: %w", t.ID, err)
			}
			ids := s.state.SecondOrder[a.world.Name]
			if at, there := slices.BinarySearch(ids, bug.ID); bug.ID != "" && !there {
				s.state.SecondOrder[a.world.Name] = slices.Insert(ids, at, bug.ID)
			}
		}
	}
	return nil
}

// secondOrderGroups is how many of them keep the configured fraction beside
// first first-order groups.
func secondOrderGroups(fraction float64, first int) int {
	return int(math.Round(fraction / (1 - fraction) * float64(first)))
}

// episodeCounts are a group's figures that its trajectories do not spell out.
func episodeCounts(g *rollout.Group, sandboxes *atomic.Int64) map[string]float64 {
	c := map[string]float64{"episodes": float64(len(g.Trajectories)), "sandboxes": float64(sandboxes.Load())}
	for _, t := range g.Trajectories {
		for _, turn := range t.Turns {
			c["tool_calls"]++
			if turn.Tool == "" {
				c["malformed_calls"]++
			}
		}
	}
	return c
}

// typedDetails gives a group that was read from JSON its details' types back.
func typedDetails(g *rollout.Group) error {
	for _, t := range g.Trajectories {
		var err error
		switch {
		case t.Detail == nil:
		case g.Role == rollout.Injector:
			t.Detail, err = DetailOf[InjectorDetail](t)
		default:
			t.Detail, err = DetailOf[SolverDetail](t)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// DetailOf reads a trajectory's Detail as a T, be it in memory or back from JSON.
func DetailOf[T any](t *rollout.Trajectory) (T, error) {
	if d, ok := t.Detail.(T); ok {
		return d, nil
	}
	var d T
	data, err := json.Marshal(t.Detail)
	if err == nil {
		err = json.Unmarshal(data, &d)
	}
	if err != nil {
		return d, fmt.Errorf("detail of trajectory %s: %w", t.ID, err)
	}
	return d, nil
}

// sandboxCounter is the key of a context's counter of sandboxes.
type sandboxCounter struct{}

// countSandboxes counts what is started under the context: the sandboxes of one
// group, whichever others play beside it. So the figure of a run that was
// killed and resumed is that of one that was not.
func countSandboxes(ctx context.Context) (context.Context, *atomic.Int64) {
	n := new(atomic.Int64)
	return context.WithValue(ctx, sandboxCounter{}, n), n
}

// uncounted is for what is done once and remembered for all groups of a
// process: it is no group's own.
func uncounted(ctx context.Context) context.Context {
	return context.WithValue(ctx, sandboxCounter{}, nil)
}

// countedBackend counts the sandboxes it starts.
type countedBackend struct{ sandbox.Backend }

func (b countedBackend) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	box, err := b.Backend.Start(ctx, spec)
	if n, ok := ctx.Value(sandboxCounter{}).(*atomic.Int64); ok && err == nil {
		n.Add(1)
	}
	return box, err
}

// group ids of a step begin with the same letters, so that a listing sorts by step.
func injectorGroupID(step, index int) string { return fmt.Sprintf("s%05d-i%02d", step, index) }

// withDefaults takes DefaultRequirements for fields that are not positive.
func (r Requirements) withDefaults() Requirements {
	d := DefaultRequirements
	if r.MinPassingTests > 0 {
		d.MinPassingTests = r.MinPassingTests
	}
	if r.MinChangedFiles > 0 {
		d.MinChangedFiles = r.MinChangedFiles
	}
	if r.MinFailingTests > 0 {
		d.MinFailingTests = r.MinFailingTests
	}
	return d
}
