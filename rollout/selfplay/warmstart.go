package selfplay

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/sandbox"
)

// Draw returns the random numbers that belong to seed and labels, and to
// nothing else: what is drawn does not depend on what was drawn before.
func Draw(seed uint64, labels ...any) *rand.Rand {
	h := sha256.New()
	fmt.Fprintf(h, "%d", seed)
	for _, l := range labels {
		fmt.Fprintf(h, "\x00%v", l)
	}
	sum := h.Sum(nil)
	return rand.New(rand.NewPCG(binary.LittleEndian.Uint64(sum), binary.LittleEndian.Uint64(sum[8:])))
}

// WarmstartOptions say which scripted episodes are wanted.
type WarmstartOptions struct {
	// Bugs is how many valid and solved bugs are wanted.
	Bugs int
	// Seed draws which, and in which order.
	Seed uint64
	// Strategies are the weights of removal and history (default: even, as far
	// as the repository's history goes).
	Strategies map[Strategy]float64
	// Exclude holds the patch-ids (Patch.ID) of injections that must not be
	// made: those of another set from which this one is to be held out.
	Exclude map[string]bool
	// Targets tells the injector in its prompt which file and function to aim at.
	Targets bool
	// Requirements of validation; zero fields mean their defaults.
	Requirements Requirements
	// Careful is the share of players that test their work before they submit it,
	// and Slip their Habits.Slip. Shy is the share of the careful whose testing is
	// not to be imitated: a policy that knows how to mend its work, and seldom looks
	// whether it must, has something to learn by self-play.
	Careful, Slip, Shy float64
	// Recipe overrides the built-in one that fits the repository.
	Recipe *Recipe
	// Env shapes the episodes, as in the game that is to follow. A command may
	// take 20 s where Env.Limits does not say otherwise: removals make endless loops.
	Env EnvOptions
	// Turns is the turn limit that feedback counts down from, as in the game that
	// is to follow (default 16).
	Turns int
	// InFlight bounds episodes alive at once (default 4).
	InFlight int
	// Progress, optional, is told after each batch what there is so far, and how many
	// plans were tried of how many.
	Progress func(sofar *Warm, tried, plans int)
	// Keep, optional, is given every episode that ends, by one goroutine at a time; its
	// error ends the warm start. Played are those that were kept by another one over the
	// same repository, by their trajectories' IDs: they are taken as they are. But for
	// Bugs, Exclude and InFlight it must have had the same options.
	Keep   func(WarmEpisode) error
	Played map[string]WarmEpisode
}

// Warm is what scripted players made: bug i was injected by Injections[i] and
// solved by Solutions[i].
type Warm struct {
	Bugs []Bug
	// PatchIDs are the injections' Patch.ID.
	PatchIDs []string
	// Injections and Solutions hold their text alone, Messages and Turns: render it
	// with a model's chat through rollout.Replay.
	Injections, Solutions []*rollout.Trajectory
	// Skipped are the turns, from 0, of an episode that are not to be imitated, by its ID.
	Skipped map[string][]int
	// Lost are the plans that gave no bug, by what became of them: the outcome of the
	// injection, such as "refused:script", or that of the repair.
	Lost map[string]Lost
}

// Lost are plans that ended alike.
type Lost struct {
	Plans int
	// Why is what the check of the first one expected and saw, or what its player could
	// not do; "" where neither is known.
	Why string
}

func (w *Warm) lose(outcome, why string) {
	l := w.Lost[outcome]
	if l.Plans++; l.Plans == 1 {
		l.Why = why
	}
	w.Lost[outcome] = l
}

// WarmEpisode is a scripted episode that has ended, well or not, as JSON, too: an
// interrupted warm start goes on from those that it has kept.
type WarmEpisode struct {
	// Trajectory holds the text alone, as in Warm.
	Trajectory *rollout.Trajectory `json:"trajectory"`
	// Skipped are the turns, from 0, that are not to be imitated.
	Skipped []int `json:"skipped,omitempty"`
	// Bug is what a valid injection made, nil otherwise.
	Bug *Bug `json:"bug,omitempty"`
	// Why is Lost.Why of one that gave no bug.
	Why string `json:"why,omitempty"`
}

// outcome is how the episode ended, in a word.
func (e WarmEpisode) outcome() string {
	return cmp.Or(e.Trajectory.Outcome, string(e.Trajectory.Status))
}

// Warmstart plays scripted injector and oracle-solver episodes in real
// sandboxes, validates every bug with v and judges every repair with v's
// verdict. It keeps what is valid, solved and not a repetition, in an order
// that only opts.Seed decides. Fewer bugs than wanted are no error: the
// repository has no more to give.
func Warmstart(ctx context.Context, repo *Repo, v *Validator, opts WarmstartOptions) (*Warm, error) {
	opts.Requirements = opts.Requirements.withDefaults()
	if opts.Env.Limits.Command <= 0 {
		opts.Env.Limits.Command = 20 * time.Second
	}
	opts.Env = opts.Env.withDefaults()
	if opts.Turns <= 0 {
		opts.Turns = 16
	}
	if opts.InFlight <= 0 {
		opts.InFlight = 4
	}
	recipe := opts.Recipe
	if recipe == nil {
		found, err := FindRecipe(repo.Files())
		if err != nil {
			return nil, err
		}
		recipe = &found
	}
	planner, err := NewPlanner(ctx, opts.Env.Backend, repo, *recipe)
	if err != nil {
		return nil, err
	}
	plans := order(planner.Plans(), opts)
	if len(plans) == 0 {
		return nil, errors.New("warm start: no function of the repository has a statement to remove and a test file that mentions it; supply a recipe")
	}

	w := &warmstart{repo: repo, validator: v, planner: planner, opts: opts, seen: map[string]bool{}, warm: &Warm{Skipped: map[string][]int{}, Lost: map[string]Lost{}}}
	maps.Copy(w.seen, opts.Exclude)
	for tried := 0; tried < len(plans) && len(w.warm.Bugs) < opts.Bugs; {
		batch := plans[tried:min(len(plans), tried+max(opts.InFlight*2, opts.Bugs-len(w.warm.Bugs)))]
		if err := w.batch(ctx, tried, batch); err != nil {
			return nil, err
		}
		tried += len(batch)
		if opts.Progress != nil {
			opts.Progress(w.warm, tried, len(plans))
		}
	}
	return w.warm, nil
}

// order shuffles plans and interleaves the strategies by their weights.
func order(plans []Plan, opts WarmstartOptions) []Plan {
	byStrategy := map[Strategy][]Plan{}
	for _, p := range plans {
		byStrategy[p.Strategy] = append(byStrategy[p.Strategy], p)
	}
	weights := opts.Strategies
	if len(weights) == 0 {
		weights = map[Strategy]float64{Removal: 1, History: 1}
	}
	draw := Draw(opts.Seed, "warmstart")
	for _, s := range []Strategy{Removal, History} {
		list := byStrategy[s]
		draw.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	var out []Plan
	for {
		s := drawStrategy(draw, weights, func(s Strategy) bool { return len(byStrategy[s]) > 0 })
		if s == "" {
			return out
		}
		out = append(out, byStrategy[s][0])
		byStrategy[s] = byStrategy[s][1:]
	}
}

// drawStrategy draws by weight among the strategies that are allowed, "" for none.
func drawStrategy(draw *rand.Rand, weights map[Strategy]float64, allowed func(Strategy) bool) Strategy {
	var total float64
	var names []Strategy
	for s, w := range weights {
		if w > 0 && allowed(s) {
			names = append(names, s)
		}
	}
	slices.Sort(names)
	for _, s := range names {
		total += weights[s]
	}
	x := draw.Float64() * total
	for _, s := range names {
		if x -= weights[s]; x < 0 {
			return s
		}
	}
	if len(names) > 0 {
		return names[len(names)-1]
	}
	return ""
}

// warmstart is Warmstart at work.
type warmstart struct {
	repo      *Repo
	validator *Validator
	planner   *Planner
	opts      WarmstartOptions
	seen      map[string]bool // patch-ids of injections that are not to be made again
	warm      *Warm
}

// scriptedTask is an episode and who plays it.
type scriptedTask struct {
	rollout.Task
	player func(ctx context.Context) (ScriptedPlayer, error)
}

// batch plays plans, the first of which has this number, and adds what is good to what
// there is, in the plans' order.
func (w *warmstart) batch(ctx context.Context, first int, plans []Plan) error {
	injections, solutions := make([]scriptedTask, len(plans)), []scriptedTask{}
	for i, plan := range plans {
		injections[i] = w.injection(plan, fmt.Sprintf("warm-inject-%05d", first+i))
	}
	injected, err := w.play(ctx, injections)
	if err != nil {
		return err
	}
	var chosen []WarmEpisode
	var patchIDs []string
	for i, task := range injections {
		e := injected[task.ID]
		if e.Bug == nil {
			w.warm.lose(e.outcome(), e.Why)
			continue
		}
		patch, err := ParsePatch(e.Bug.Artifact.BugInject)
		if err != nil {
			return fmt.Errorf("a valid injection does not parse: %w", err)
		}
		id := patch.ID()
		if w.seen[id] || len(w.warm.Bugs)+len(solutions) >= w.opts.Bugs {
			continue
		}
		w.seen[id] = true
		chosen, patchIDs = append(chosen, e), append(patchIDs, id)
		solutions = append(solutions, w.solution(*e.Bug, fmt.Sprintf("warm-solve-%05d", first+i)))
	}
	solved, err := w.play(ctx, solutions)
	if err != nil {
		return err
	}
	for i, inject := range chosen {
		solve := solved[solutions[i].ID]
		if solve.Trajectory.Outcome != OutcomeSolved {
			w.warm.lose("repair "+solve.outcome(), solve.Why)
			continue
		}
		w.warm.Bugs = append(w.warm.Bugs, *inject.Bug)
		w.warm.PatchIDs = append(w.warm.PatchIDs, patchIDs[i])
		w.warm.Injections = append(w.warm.Injections, inject.Trajectory)
		w.warm.Solutions = append(w.warm.Solutions, solve.Trajectory)
		for _, e := range []WarmEpisode{inject, solve} {
			if len(e.Skipped) > 0 {
				w.warm.Skipped[e.Trajectory.ID] = e.Skipped
			}
		}
	}
	return nil
}

// injection is the episode of a plan. The Detail of a valid one is its Bug.
func (w *warmstart) injection(plan Plan, id string) scriptedTask {
	task := Injection{Strategy: plan.Strategy, Requirements: w.opts.Requirements}
	if w.opts.Targets {
		task.Target = plan.Target()
	}
	return scriptedTask{
		Task: rollout.Task{ID: id, Role: rollout.Injector,
			Env: func() (rollout.Env, error) { return NewInjectorEnv(w.opts.Env, w.repo, task, id), nil },
			Score: func(ctx context.Context, env rollout.Env, t *rollout.Trajectory) error {
				a, ok := env.(*InjectorEnv).Artifact()
				if !ok {
					return nil
				}
				report, err := w.validator.Validate(ctx, a, w.opts.Requirements)
				if err != nil {
					return err
				}
				t.Outcome, t.Detail = injectionOutcome(report), Bug{ID: a.ID(), Artifact: a, Report: report}
				return nil
			}},
		player: func(context.Context) (ScriptedPlayer, error) {
			return w.planner.Injector(plan, w.opts.Env.Protocol, w.habits(id))
		},
	}
}

// solution is the episode of a bug's repair.
func (w *warmstart) solution(bug Bug, id string) scriptedTask {
	return scriptedTask{
		Task: rollout.Task{ID: id, Role: rollout.Solver,
			Env: func() (rollout.Env, error) { return NewSolverEnv(w.opts.Env, w.repo, bug, id), nil },
			Score: func(ctx context.Context, env rollout.Env, t *rollout.Trajectory) error {
				return scoreSolver(ctx, w.validator, bug, env.(*SolverEnv), t)
			}},
		player: func(ctx context.Context) (ScriptedPlayer, error) {
			return w.planner.Solver(ctx, bug, w.opts.Env.Protocol, w.habits(id))
		},
	}
}

// habits are drawn for each episode alone.
func (w *warmstart) habits(id string) Habits {
	draw := Draw(w.opts.Seed, "habits", id)
	return Habits{Careful: draw.Float64() < w.opts.Careful, Shy: draw.Float64() < w.opts.Shy, Slip: w.opts.Slip, Draw: draw}
}

// play returns all episodes of tasks by their IDs, and plays those that were not before.
func (w *warmstart) play(ctx context.Context, tasks []scriptedTask) (map[string]WarmEpisode, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended, players := map[string]WarmEpisode{}, map[string]func(context.Context) (ScriptedPlayer, error){}
	var left []rollout.Task
	for _, t := range tasks {
		if e, ok := w.opts.Played[t.ID]; ok {
			ended[t.ID] = e
			continue
		}
		left, players[t.ID] = append(left, t.Task), t.player
	}
	var mu sync.Mutex // of playing
	playing := map[string]ScriptedPlayer{}
	runner := rollout.NewRunner(rollout.Player{
		Policy: &rollout.TextPolicy{New: func(id string) (rollout.TextPlayer, error) {
			player, err := players[id](ctx)
			if errors.Is(err, sandbox.ErrInfrastructure) {
				cancel(err) // not the plan's fault
			}
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			playing[id] = player
			return player, nil
		}},
		Chat:   rollout.ByteChat{},
		Limits: rollout.Limits{Turns: w.opts.Turns, Context: 1 << 20, ObservationTokens: 1 << 18},
		Seed:   w.opts.Seed,
	}, w.opts.InFlight)
	runner.Retries = 2
	var failures error
	err := runner.Run(ctx, left, func(t *rollout.Trajectory) {
		switch {
		case t.Status == rollout.Cancelled:
			return
		case t.Status == rollout.Failed && t.FailureKind() != rollout.FailPolicy:
			failures = errors.Join(failures, fmt.Errorf("scripted episode %s: %s", t.ID, t.Failure))
			return
		}
		// A plan that does not work out is a failure of its player, nothing more.
		e := WarmEpisode{Trajectory: &rollout.Trajectory{
			ID: t.ID, Role: t.Role, Messages: t.Messages, Turns: t.Turns, Status: t.Status, Outcome: t.Outcome, Failure: t.Failure,
		}, Why: t.Failure}
		if t.Status == rollout.Scored {
			mu.Lock()
			e.Skipped = playing[t.ID].Skipped()
			mu.Unlock()
		}
		switch bug, ok := t.Detail.(Bug); {
		case ok && t.Status == rollout.Scored && bug.Report.Valid:
			e.Bug = &bug
		case ok:
			e.Why = cmp.Or(e.Why, bug.Report.refused())
		}
		ended[t.ID] = e
		if w.opts.Keep == nil {
			return
		}
		if err := w.opts.Keep(e); err != nil {
			cancel(fmt.Errorf("keep scripted episode %s: %w", t.ID, err))
		}
	})
	return ended, errors.Join(err, failures)
}

// refused is what the check that refused an artifact expected and saw, "" where none did.
func (r Report) refused() string {
	for _, c := range r.Checks {
		if c.OK != nil && !*c.OK {
			return fmt.Sprintf("expected %s; seen: %s", c.Expected, c.Seen)
		}
	}
	return ""
}

// injectionOutcome is "valid" or "refused:CHECK".
func injectionOutcome(r Report) string {
	if r.Valid {
		return OutcomeValid
	}
	return OutcomeRefused + string(r.Refusal())
}

// OutcomeRefused is followed by the name of the check that refused an artifact.
const OutcomeRefused = "refused:"

// IsRefused returns the check that refused an injection, if one did.
func IsRefused(outcome string) (CheckName, bool) {
	name, ok := strings.CutPrefix(outcome, OutcomeRefused)
	return CheckName(name), ok
}
