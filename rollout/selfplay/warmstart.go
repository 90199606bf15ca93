package selfplay

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ssr-go/ssr/rollout"
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
	// Progress, optional, is told after each batch how many bugs are kept and
	// how many plans were tried of how many.
	Progress func(kept, tried, plans int)
}

// Warm is what scripted players made: bug i was injected by Injections[i] and
// solved by Solutions[i].
type Warm struct {
	Bugs []Bug
	// PatchIDs are the injections' Patch.ID.
	PatchIDs []string
	// Injections and Solutions are recorded over rollout.ByteChat: render their
	// Messages and Turns with a model's chat through rollout.Replay.
	Injections, Solutions []*rollout.Trajectory
	// Skipped are the turns, from 0, of an episode that are not to be imitated, by its ID.
	Skipped map[string][]int
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

	warm := &Warm{Skipped: map[string][]int{}}
	seen := map[string]bool{}
	for id := range opts.Exclude {
		seen[id] = true
	}
	for tried := 0; tried < len(plans) && len(warm.Bugs) < opts.Bugs; {
		batch := plans[tried:min(len(plans), tried+max(opts.InFlight*2, opts.Bugs-len(warm.Bugs)))]
		if err := playBatch(ctx, repo, v, planner, opts, tried, batch, seen, warm); err != nil {
			return nil, err
		}
		tried += len(batch)
		if opts.Progress != nil {
			opts.Progress(len(warm.Bugs), tried, len(plans))
		}
	}
	return warm, nil
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

// playBatch plays plans and adds what is good to warm, in the plans' order.
func playBatch(ctx context.Context, repo *Repo, v *Validator, p *Planner, opts WarmstartOptions, first int, plans []Plan, seen map[string]bool, warm *Warm) error {
	type result struct {
		inject, solve *rollout.Trajectory
		bug           Bug
	}
	results := make([]result, len(plans))
	name := func(kind string, i int) string { return fmt.Sprintf("warm-%s-%05d", kind, first+i) }
	index := map[string]int{}
	habits := func(id string) Habits {
		draw := Draw(opts.Seed, "habits", id)
		return Habits{Careful: draw.Float64() < opts.Careful, Shy: draw.Float64() < opts.Shy, Slip: opts.Slip, Draw: draw}
	}
	players := map[string]func(id string) (ScriptedPlayer, error){}
	for i, plan := range plans {
		index[name("inject", i)], index[name("solve", i)] = i, i
		players[name("inject", i)] = func(id string) (ScriptedPlayer, error) {
			return p.Injector(plan, opts.Env.Protocol, habits(id))
		}
		players[name("solve", i)] = func(id string) (ScriptedPlayer, error) {
			return p.Solver(ctx, results[i].bug, opts.Env.Protocol, habits(id))
		}
	}
	var mu sync.Mutex // of playing
	playing := map[string]ScriptedPlayer{}
	runner := rollout.NewRunner(rollout.Player{
		Policy: &rollout.TextPolicy{New: func(id string) (rollout.TextPlayer, error) {
			player, err := players[id](id)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			playing[id] = player
			return player, nil
		}},
		Chat:   rollout.ByteChat{},
		Limits: rollout.Limits{Turns: opts.Turns, Context: 1 << 20, ObservationTokens: 1 << 18},
		Seed:   opts.Seed,
	}, opts.InFlight)
	runner.Retries = 2
	var failure error
	note := func(t *rollout.Trajectory) {
		// A plan that does not work out is a failure of its player, nothing more.
		if t.Status == rollout.Failed && t.FailureKind() != rollout.FailPolicy {
			failure = errors.Join(failure, fmt.Errorf("scripted episode %s: %s", t.ID, t.Failure))
		}
	}

	tasks := make([]rollout.Task, len(plans))
	for i, plan := range plans {
		task := Injection{Strategy: plan.Strategy, Requirements: opts.Requirements}
		if opts.Targets {
			task.Target = plan.Target()
		}
		tasks[i] = rollout.Task{ID: name("inject", i), Role: rollout.Injector,
			Env: func() (rollout.Env, error) {
				return NewInjectorEnv(opts.Env, repo, task, name("inject", i)), nil
			},
			Score: func(ctx context.Context, env rollout.Env, t *rollout.Trajectory) error {
				a, ok := env.(*InjectorEnv).Artifact()
				if !ok {
					return nil
				}
				report, err := v.Validate(ctx, a, opts.Requirements)
				if err != nil {
					return err
				}
				t.Outcome = injectionOutcome(report)
				results[i].bug = Bug{ID: a.ID(), Artifact: a, Report: report}
				return nil
			}}
	}
	err := runner.Run(ctx, tasks, func(t *rollout.Trajectory) {
		note(t)
		if t.Status == rollout.Scored && t.Outcome == OutcomeValid {
			results[index[t.ID]].inject = t
		}
	})
	if err := errors.Join(err, failure); err != nil {
		return err
	}

	tasks = tasks[:0]
	for i := range plans {
		r := &results[i]
		if r.inject == nil {
			continue
		}
		patch, err := ParsePatch(r.bug.Artifact.BugInject)
		if err != nil {
			return fmt.Errorf("a valid injection does not parse: %w", err)
		}
		id := patch.ID()
		if seen[id] || len(warm.Bugs)+len(tasks) >= opts.Bugs {
			r.inject = nil
			continue
		}
		seen[id] = true
		tasks = append(tasks, rollout.Task{ID: name("solve", i), Role: rollout.Solver,
			Env: func() (rollout.Env, error) { return NewSolverEnv(opts.Env, repo, r.bug, name("solve", i)), nil },
			Score: func(ctx context.Context, env rollout.Env, t *rollout.Trajectory) error {
				return scoreSolver(ctx, v, r.bug, env.(*SolverEnv), t)
			}})
	}
	err = runner.Run(ctx, tasks, func(t *rollout.Trajectory) {
		note(t)
		if t.Status == rollout.Scored && t.Outcome == OutcomeSolved {
			results[index[t.ID]].solve = t
		}
	})
	if err := errors.Join(err, failure); err != nil {
		return err
	}
	for _, r := range results {
		if r.inject == nil || r.solve == nil {
			continue
		}
		patch, err := ParsePatch(r.bug.Artifact.BugInject)
		if err != nil {
			return err
		}
		warm.Bugs = append(warm.Bugs, r.bug)
		warm.PatchIDs = append(warm.PatchIDs, patch.ID())
		warm.Injections = append(warm.Injections, r.inject)
		warm.Solutions = append(warm.Solutions, r.solve)
		for _, t := range []*rollout.Trajectory{r.inject, r.solve} {
			if skipped := playing[t.ID].Skipped(); len(skipped) > 0 {
				warm.Skipped[t.ID] = skipped
			}
		}
	}
	return nil
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
