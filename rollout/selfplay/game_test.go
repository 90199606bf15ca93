package selfplay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rollout"
	"github.com/ssr-go/ssr/sandbox"
)

// cast plays both roles without a model. What each trajectory does is drawn
// from its id, so it is the same in every run.
type cast struct {
	planner *Planner
	bug     func(id string) (Bug, error)
	jitter  time.Duration

	mu    sync.Mutex
	plays map[string]int // how often each trajectory began
}

func (c *cast) policy() rollout.Policy {
	return &jittery{&rollout.TextPolicy{New: c.player}, c.jitter}
}

// jittery shuffles the order in which episodes end.
type jittery struct {
	*rollout.TextPolicy
	most time.Duration
}

func (p *jittery) Generate(ctx context.Context, req gen.Request) (gen.Completion, error) {
	if p.most > 0 {
		time.Sleep(time.Duration(Draw(uint64(time.Now().UnixNano())).Int64N(int64(p.most))))
	}
	return p.TextPolicy.Generate(ctx, req)
}

func (c *cast) player(id string) (rollout.TextPlayer, error) {
	c.mu.Lock()
	c.plays[id]++
	c.mu.Unlock()
	draw := Draw(3, "cast", id)
	group := id[:strings.LastIndex(id, "-a")]
	if _, bugID, ok := strings.Cut(group, "-b"); ok {
		bug, err := c.bug(bugID)
		if err != nil {
			return nil, err
		}
		switch draw.IntN(4) {
		case 0, 1:
			return c.planner.Solver(context.Background(), bug, token.Plain, Habits{})
		case 2: // a patch that mends nothing
			return lines{"<tool: bash>\necho '# '" + id + " >> quill/spans.py\n</tool>", "<tool: submit>\n</tool>"}.player(), nil
		}
		return lines{"I cannot mend this."}.player(), nil
	}
	if draw.IntN(5) == 0 {
		return lines{"<tool: submit>", "<tool: submit>\n</tool>", "<tool: dance>\n</tool>"}.player(), nil
	}
	return &chosen{planner: c.planner, draw: draw.Uint64()}, nil
}

// lines says its lines one after the other, the last one for ever.
type lines []string

func (l lines) player() rollout.TextPlayer { return &speaker{lines: l} }

type speaker struct {
	lines []string
	turn  int
}

func (s *speaker) Turn(context.Context, string) (string, error) {
	text := s.lines[min(s.turn, len(s.lines)-1)]
	s.turn++
	return text, nil
}

// chosen takes up the plan that fits the prompt.
type chosen struct {
	planner *Planner
	draw    uint64
	player  rollout.TextPlayer
}

func (c *chosen) Turn(ctx context.Context, seen string) (string, error) {
	if c.player == nil {
		plan, ok := c.planner.Pick(seen, Draw(c.draw))
		if !ok {
			return "", errors.New("no plan")
		}
		player, err := c.planner.Injector(plan, token.Plain, Habits{Careful: true})
		if err != nil {
			return "", err
		}
		c.player = player
	}
	return c.player.Turn(ctx, seen)
}

// table is a whole game over quill with a cast.
type table struct {
	game *Game
	pool *Pool
	cast *cast
}

func newTable(t *testing.T, repo *Repo, dir string, inFlight int, jitter time.Duration, change func(*GameOptions)) *table {
	t.Helper()
	backend := localBackend(t)
	pool, err := OpenPool(filepath.Join(dir, "pool"))
	if err != nil {
		t.Fatal(err)
	}
	planner, err := NewPlanner(t.Context(), backend, repo, PythonRecipe())
	if err != nil {
		t.Fatal(err)
	}
	c := &cast{planner: planner, bug: pool.Get, jitter: jitter, plays: map[string]int{}}
	runner := rollout.NewRunner(rollout.Player{Policy: c.policy(), Chat: rollout.ByteChat{}, Limits: rollout.Limits{Turns: 8}, Seed: 1}, inFlight)
	opts := GameOptions{
		Seed:           7,
		Repos:          []GameRepo{{Name: "quill", Repo: repo, Pool: pool, Targets: planner.Targets()}},
		Env:            EnvOptions{Backend: backend, Prompts: BriefPrompts()},
		Validation:     Options{ReuseOriginal: true, Timeout: 20 * time.Second},
		InjectorGroups: 2, InjectorsPerPrompt: 2, SolversPerBug: 2,
		SecondOrderFraction: 0.25,
	}
	if change != nil {
		change(&opts)
	}
	game, err := NewGame(runner, opts)
	if err != nil {
		t.Fatal(err)
	}
	return &table{game, pool, c}
}

// play plays a step and returns the last record of each group.
func (tb *table) play(t *testing.T, step int, done []*rollout.Group, finish func(*rollout.Group) error) (map[string]*rollout.Group, error) {
	t.Helper()
	groups := map[string]*rollout.Group{}
	for _, g := range done {
		groups[g.ID] = g
	}
	err := tb.game.Play(t.Context(), step, done, func(g *rollout.Group, counts map[string]float64) error {
		groups[g.ID] = g
		if finish != nil {
			return finish(g)
		}
		return nil
	})
	return groups, err
}

// plain is what must not differ between two runs: everything but wall-clock times.
func plain(t *testing.T, groups map[string]*rollout.Group) string {
	t.Helper()
	for _, g := range groups {
		for _, tr := range g.Trajectories {
			for i := range tr.Turns {
				tr.Turns[i].Seconds = 0
			}
		}
	}
	data, err := json.MarshalIndent(groups, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestGame plays whole steps on the bundled repository, in real sandboxes.
func TestGame(t *testing.T) {
	if testing.Short() {
		t.Skip("plays real episodes")
	}
	t.Cleanup(func() { goleak.VerifyNone(t) })
	repo := quill(t)
	for name, test := range map[string]func(*testing.T, *Repo){
		"rewards and determinism": testGameRewardsAndDeterminism,
		"resume":                  testGameResumesWithoutRepeating,
		"modes":                   testGameModes,
		"lost sandboxes":          testGameMasksWhatInfrastructureLost,
		"bounded solver groups":   testGameBoundsSolverGroups,
	} {
		t.Run(name, func(t *testing.T) { test(t, repo) })
	}
}

func testGameRewardsAndDeterminism(t *testing.T, repo *Repo) {
	one := newTable(t, repo, t.TempDir(), 1, 0, nil)
	groups, err := one.play(t, 1, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	valid, solvers := 0, 0
	for id, g := range groups {
		for _, tr := range g.Trajectories {
			if tr.Status != rollout.Scored {
				t.Errorf("%s: status %s, failure %s", tr.ID, tr.Status, tr.Failure)
				continue
			}
			t.Logf("%s %-10s %-20s reward %+.3f, %d turns, %d tokens", tr.ID, tr.Role, tr.Outcome, tr.Reward, len(tr.Turns), len(tr.Tokens))
		}
		if g.Role == rollout.Solver {
			solvers++
			if len(g.Trajectories) != 2 {
				t.Errorf("group %s has %d attempts, want 2", id, len(g.Trajectories))
			}
			continue
		}
		for _, tr := range g.Trajectories {
			d, err := DetailOf[InjectorDetail](tr)
			if err != nil {
				t.Fatal(err)
			}
			if tr.Outcome != OutcomeValid {
				if tr.Reward != -1 {
					t.Errorf("%s ended as %s with reward %v, want -1", tr.ID, tr.Outcome, tr.Reward)
				}
				continue
			}
			valid++
			// Section 2.4, from the verdicts themselves.
			solved := 0
			for _, s := range groups["s00001-b"+d.Bug].Trajectories {
				sd, _ := DetailOf[SolverDetail](s)
				if won := sd.Verdict != nil && sd.Verdict.Solved; won != (s.Reward == 1) || !won && s.Reward != -1 {
					t.Errorf("%s: solved %v, reward %v", s.ID, won, s.Reward)
				} else if won {
					solved++
				}
			}
			want := []float64{-0.8, 0.1, -0.8}[solved]
			if diff := tr.Reward - want; diff > 1e-12 || diff < -1e-12 {
				t.Errorf("%s: %d of 2 solved its bug, reward %v, want %v", tr.ID, solved, tr.Reward, want)
			}
		}
	}
	if valid < 2 || solvers < 2 {
		t.Fatalf("%d valid bugs and %d solver groups: too few to say anything", valid, solvers)
	}

	many := newTable(t, repo, t.TempDir(), 6, 30*time.Millisecond, nil)
	again, err := many.play(t, 1, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain(t, groups), plain(t, again)); diff != "" {
		t.Errorf("one episode at a time and six in random order differ:\n%s", diff)
	}
	if diff := cmp.Diff(one.game.state, many.game.state); diff != "" || len(one.game.state.SecondOrder["quill"]) == 0 {
		t.Errorf("second-order bugs %v; difference:\n%s", one.game.state, diff)
	}
}

func testGameResumesWithoutRepeating(t *testing.T, repo *Repo) {
	dir := t.TempDir()
	small := func(o *GameOptions) { o.InjectorGroups = 1 }
	whole := newTable(t, repo, t.TempDir(), 4, 0, small)
	want, err := whole.play(t, 2, nil, nil)
	if err != nil {
		t.Fatal(err)
	}

	// The play is cut after every record and taken up again, through JSON, by
	// a new game over the same pool.
	var journal []string
	plays := map[string]int{}
	crash := errors.New("power cut")
	var got map[string]*rollout.Group
	for cut := 1; ; cut++ {
		tb := newTable(t, repo, dir, 4, 0, small)
		var done []*rollout.Group
		for _, line := range journal {
			g := new(rollout.Group)
			if err := json.Unmarshal([]byte(line), g); err != nil {
				t.Fatal(err)
			}
			done = append(done, g)
		}
		recorded := 0
		got, err = tb.play(t, 2, done, func(g *rollout.Group) error {
			if recorded == 1 {
				return crash
			}
			recorded++
			line, err := json.Marshal(g)
			journal = append(journal, string(line))
			return err
		})
		for _, line := range journal[len(journal)-recorded:] {
			g := new(rollout.Group)
			if err := json.Unmarshal([]byte(line), g); err != nil {
				t.Fatal(err)
			}
			for _, tr := range g.Trajectories {
				plays[tr.ID] += tb.cast.plays[tr.ID]
			}
		}
		if err == nil {
			break
		}
		if !errors.Is(err, crash) || cut > 20 {
			t.Fatalf("attempt %d: %v", cut, err)
		}
	}
	if diff := cmp.Diff(plain(t, want), plain(t, got)); diff != "" {
		t.Errorf("the resumed step differs from the whole one:\n%s", diff)
	}
	for id, n := range plays {
		if n != 1 {
			t.Errorf("%s was recorded from %d plays", id, n)
		}
	}
}

func testGameModes(t *testing.T, repo *Repo) {
	dir := t.TempDir()
	inject := newTable(t, repo, dir, 4, 0, func(o *GameOptions) { o.Mode = InjectionOnly })
	groups, err := inject.play(t, 1, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	valid := 0
	for _, g := range groups {
		for _, tr := range g.Trajectories {
			want := -1.0
			if tr.Outcome == OutcomeValid {
				want, valid = 1, valid+1
			}
			if tr.Role != rollout.Injector || tr.Reward != want {
				t.Errorf("%s %s as %s has reward %v, want %v", tr.Role, tr.ID, tr.Outcome, tr.Reward, want)
			}
		}
	}
	if valid == 0 || len(inject.pool.IDs(1)) == 0 {
		t.Fatalf("%d valid bugs, pool %v", valid, inject.pool.IDs(1))
	}

	before := fmt.Sprint(inject.pool.IDs(1), inject.pool.IDs(2))
	repair := newTable(t, repo, dir, 4, 0, func(o *GameOptions) { o.Mode, o.SolverGroups = RepairOnly, 2 })
	groups, err = repair.play(t, 1, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) != min(2, len(inject.pool.IDs(1))) {
		t.Errorf("%d groups, want 2", len(groups))
	}
	for _, g := range groups {
		if g.Role != rollout.Solver {
			t.Errorf("group %s is the %s's", g.ID, g.Role)
		}
	}
	// One group, and others as long as none has spread and there are bugs left.
	again := newTable(t, repo, dir, 4, 0, func(o *GameOptions) {
		o.Mode, o.SolverGroups, o.SecondOrderFraction, o.Resample = RepairOnly, 1, 0, 10
	})
	resampled, spread := 0.0, 0
	err = again.game.Play(t.Context(), 1, nil, func(g *rollout.Group, counts map[string]float64) error {
		resampled += counts["resampled_groups"]
		if g.HasSpread() {
			spread++
		}
		groups[g.ID] = g
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if played := int(resampled) + 1; spread != 1 && (spread != 0 || played != len(again.pool.IDs(1))) {
		t.Errorf("%d groups of %d bugs, of which %d have spread; want one with spread, or all bugs", played, len(again.pool.IDs(1)), spread)
	}
	if after := fmt.Sprint(repair.pool.IDs(1), repair.pool.IDs(2)); after != before {
		t.Errorf("the fixed pool changed from %s to %s", before, after)
	}
}

// faultyBackend loses every third sandbox at its start.
type faultyBackend struct {
	sandbox.Backend
	starts atomic.Int64
}

func (b *faultyBackend) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if b.starts.Add(1)%3 == 0 {
		return nil, fmt.Errorf("%w: host out of disk", sandbox.ErrInfrastructure)
	}
	return b.Backend.Start(ctx, spec)
}

func testGameMasksWhatInfrastructureLost(t *testing.T, repo *Repo) {
	tb := newTable(t, repo, t.TempDir(), 4, 0, func(o *GameOptions) {
		o.Env.Backend = &faultyBackend{Backend: o.Env.Backend}
	})
	groups, err := tb.play(t, 3, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, g := range groups {
		for _, tr := range g.Trajectories {
			switch {
			case tr.Status == rollout.Failed:
				failed++
				if k := tr.FailureKind(); k != rollout.FailSandbox && k != FailUnplayed {
					t.Errorf("%s failed by %s", tr.ID, tr.Failure)
				}
			case tr.Status != rollout.Scored:
				t.Errorf("%s ended as %s", tr.ID, tr.Status)
			case g.Role == rollout.Injector && tr.Outcome == OutcomeValid:
				d, _ := DetailOf[InjectorDetail](tr)
				rate, known := solveRate(groups["s00003-b"+d.Bug])
				if !known || d.SolveRate == nil || *d.SolveRate != rate || tr.Reward != InjectorReward(Alpha, rate) {
					t.Errorf("%s: reward %v of solve rate %v, known %v", tr.ID, tr.Reward, rate, known)
				}
			}
		}
	}
	if failed == 0 {
		t.Error("no fault struck")
	}
}

func testGameBoundsSolverGroups(t *testing.T, repo *Repo) {
	tb := newTable(t, repo, t.TempDir(), 4, 0, func(o *GameOptions) {
		o.MaxSolverGroups = 1
		o.InjectorReward = func(b Bug, s float64) float64 { return 10 + s + float64(len(b.Report.FailToPass)) }
	})
	groups, err := tb.play(t, 1, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	solvers, rewarded, unplayed := 0, map[string]bool{}, 0
	for _, g := range groups {
		if g.Role == rollout.Solver {
			solvers++
			continue
		}
		for _, tr := range g.Trajectories {
			d, _ := DetailOf[InjectorDetail](tr)
			switch {
			case tr.FailureKind() == FailUnplayed:
				unplayed++
			case tr.Outcome == OutcomeValid:
				rewarded[d.Bug] = true
				if want := 10 + *d.SolveRate + float64(len(d.Report.FailToPass)); tr.Reward != want {
					t.Errorf("the reward of one's own is %v, want %v", tr.Reward, want)
				}
			}
		}
	}
	if solvers != 1 || len(rewarded) != 1 || unplayed == 0 {
		t.Errorf("%d solver groups, %d bugs rewarded, %d injections masked; want 1, 1 and some", solvers, len(rewarded), unplayed)
	}
}
