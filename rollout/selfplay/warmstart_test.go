package selfplay

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rollout"
)

// quill is the bundled Python library, built from its patches.
func quill(t testing.TB) *Repo {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "quill")
	out, err := exec.Command("../../scripts/make-world.sh", dir, "quill").CombinedOutput()
	if err != nil {
		t.Skipf("cannot build the bundled repository: %v\n%s", err, out)
	}
	return openRepo(t, dir)
}

func TestWarmstartMakesValidAndSolvedBugs(t *testing.T) {
	if testing.Short() {
		t.Skip("plays real episodes")
	}
	backend, repo := localBackend(t), quill(t)
	v := NewValidator(backend, repo, Options{ReuseOriginal: true})
	opts := WarmstartOptions{Bugs: 5, Seed: 1, Targets: true, Turns: 8, Env: EnvOptions{Backend: backend, Prompts: BriefPrompts()}}
	if n, err := strconv.Atoi(os.Getenv("WARMSTART_BUGS")); err == nil {
		opts.Bugs = n
	}
	warm, err := Warmstart(t.Context(), repo, v, opts)
	if err != nil {
		t.Fatal(err)
	}
	if len(warm.Bugs) != opts.Bugs {
		t.Fatalf("%d bugs, want %d", len(warm.Bugs), opts.Bugs)
	}
	ids := map[string]bool{}
	for i, bug := range warm.Bugs {
		patch, err := ParsePatch(bug.Artifact.BugInject)
		if err != nil || patch.ID() != warm.PatchIDs[i] || ids[patch.ID()] {
			t.Errorf("bug %s: patch-id %s, recorded %s, seen before %v, %v", bug.ID, patch.ID(), warm.PatchIDs[i], ids[patch.ID()], err)
		}
		ids[patch.ID()] = true
		// An independent validator and verdict agree.
		report, err := NewValidator(backend, repo, Options{}).Validate(t.Context(), bug.Artifact, Requirements{}.withDefaults())
		if err != nil || !report.Valid {
			t.Errorf("bug %s: valid %v, refused by %s, %v", bug.ID, report.Valid, report.Refusal(), err)
		}
		if i == 2 {
			break
		}
	}
	measureEpisodes(t, warm)

	opts.Seed, opts.Bugs, opts.Exclude = 2, 3, ids
	held, err := Warmstart(t.Context(), repo, v, opts)
	if err != nil || len(held.Bugs) != 3 {
		t.Fatalf("%d held-out bugs, %v", len(held.Bugs), err)
	}
	for _, id := range held.PatchIDs {
		if ids[id] {
			t.Errorf("held-out injection %s is in the training set", id)
		}
	}

	// A history bug: the last change, the function; then as any other, with a guess
	// which test fails.
	opts.Bugs, opts.Strategies, opts.Exclude = 1, map[Strategy]float64{History: 1}, nil
	undone, err := Warmstart(t.Context(), repo, v, opts)
	if err != nil || len(undone.Bugs) != 1 {
		t.Fatalf("%d history bugs, %v", len(undone.Bugs), err)
	}
	var tools []string
	for _, turn := range undone.Injections[0].Turns {
		tools = append(tools, strings.Join(strings.Fields(turn.Text), " "))
	}
	want := []string{"git log", "sed -n", "echo 'python3", "cat >", "sed -i"}
	if len(tools) != len(want)+1 || tools[len(want)] != "<tool: submit> </tool>" {
		t.Fatalf("%d turns %q, want %d and the submission", len(tools), tools, len(want))
	}
	for i, w := range want {
		if !strings.HasPrefix(tools[i], "<tool: bash> "+w) {
			t.Errorf("turn %d is %q, want %q …", i+1, tools[i], w)
		}
	}
}

// What an interrupted warm start has kept is not played again, and what comes of it is
// what comes of one that nobody disturbs.
func TestWarmstartGoesOn(t *testing.T) {
	if testing.Short() {
		t.Skip("plays real episodes")
	}
	backend, repo := localBackend(t), quill(t)
	opts := WarmstartOptions{Bugs: 2, Seed: 1, Turns: 16, Env: EnvOptions{Backend: backend, Prompts: BriefPrompts()}, Careful: 1, Slip: 0.5}
	play := func(ctx context.Context, opts WarmstartOptions) (*Warm, error) {
		return Warmstart(ctx, repo, NewValidator(backend, repo, Options{ReuseOriginal: true}), opts)
	}
	calm, err := play(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}

	const most = 5
	kept := map[string]WarmEpisode{}
	keep := func(e WarmEpisode) error {
		if _, twice := kept[e.Trajectory.ID]; twice {
			t.Errorf("%s was played twice", e.Trajectory.ID)
		}
		data, err := json.Marshal(e)
		if err != nil {
			return err
		}
		var back WarmEpisode
		if err := json.Unmarshal(data, &back); err != nil {
			return err
		}
		kept[e.Trajectory.ID] = back
		return nil
	}
	full := errors.New("no room")
	opts.Keep = func(e WarmEpisode) error {
		if len(kept) == most {
			return full
		}
		return keep(e)
	}
	if _, err := play(t.Context(), opts); !errors.Is(err, full) || len(kept) != most {
		t.Fatalf("%d episodes were kept, and then: %v", len(kept), err)
	}
	opts.Keep, opts.Played = keep, maps.Clone(kept)
	resumed, err := play(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []*Warm{calm, resumed} {
		for _, tr := range slices.Concat(w.Injections, w.Solutions) {
			for i := range tr.Turns {
				tr.Turns[i].Seconds = 0
			}
		}
	}
	if diff := cmp.Diff(calm, resumed); diff != "" || len(calm.Bugs) != 2 {
		t.Errorf("%d bugs; resumed: %s", len(calm.Bugs), diff)
	}
}

// The last function of a file is looked at and written anew as any other, although an
// injector's rewriting leaves a blank line after it.
func TestTheOracleRewritesTheLastFunction(t *testing.T) {
	recipe, err := PythonRecipe().compile()
	if err != nil {
		t.Fatal(err)
	}
	p := &Planner{recipe: recipe}
	original := []string{"def first():", "    return 1", "", "def last():", "    x = 1", "    return x"}
	broken := []string{"def first():", "    return 1", "", "def last():", "    return x", ""}
	s := &scriptedSolver{slippery: map[token.Call]bool{}, views: map[token.Call]bool{}}
	if err := p.repair(s, "lib.py", broken, original); err != nil {
		t.Fatal(err)
	}
	if len(s.rest) != 2 || !strings.HasPrefix(s.rest[0].Body, "sed -n '/def last(/") ||
		!strings.Contains(s.rest[1].Body, "def last():\n    x = 1\n    return x\n") {
		t.Errorf("calls %q", s.rest)
	}
}

// A careful player's slips are recorded, looked at, and mended before it submits.
func TestCarefulPlayersMendTheirSlips(t *testing.T) {
	if testing.Short() {
		t.Skip("plays real episodes")
	}
	backend, repo := localBackend(t), quill(t)
	warm, err := Warmstart(t.Context(), repo, NewValidator(backend, repo, Options{ReuseOriginal: true}), WarmstartOptions{
		Bugs: 3, Seed: 1, Targets: true, Turns: 16, Env: EnvOptions{Backend: backend, Prompts: BriefPrompts()}, Careful: 1, Slip: 1,
	})
	if err != nil || len(warm.Bugs) != 3 {
		t.Fatalf("%d bugs, %v", len(warm.Bugs), err)
	}
	all := 0 // a slip that the tests do not notice ends an episode, and a change outside functions is made by an edit
	for i := range warm.Bugs {
		for _, tr := range []*rollout.Trajectory{warm.Injections[i], warm.Solutions[i]} {
			slips := warm.Skipped[tr.ID]
			if all += len(slips); len(slips) > mostSlips {
				t.Errorf("%s slipped in turns %v, at most %d of them", tr.ID, slips, mostSlips)
			}
			kinds := map[string]int{}
			for _, turn := range tr.Turns {
				for _, kind := range []string{"unittest tests.", "bash test_script.sh", "git checkout", "head -1 /tmp/failing", "submit"} {
					if strings.Contains(turn.Text, kind) && !strings.Contains(turn.Text, "test_parser.py <<") {
						kinds[kind]++
					}
				}
			}
			last := strings.Fields(tr.Turns[len(tr.Turns)-1].Text)
			tested := tr.Role == rollout.Solver && kinds["unittest tests."] > 0 || tr.Role == rollout.Injector && kinds["bash test_script.sh"] > 0 && kinds["head -1 /tmp/failing"] == 1
			if len(slips) > 0 && !tested || kinds["submit"] != 1 || last[1] != "submit>" {
				t.Errorf("%s: calls %v, the last %q", tr.ID, kinds, last)
			}
			if tr.Outcome != OutcomeSolved && tr.Outcome != OutcomeValid {
				t.Errorf("%s: %s", tr.ID, tr.Outcome)
			}
		}
	}
	if all < 6 {
		t.Errorf("%d slips in six episodes", all)
	}
}

// measureEpisodes holds the episodes to the size that a small policy can play:
// at most 900 tokens an injection and 600 a repair, with a vocabulary of 2,048
// trained on them.
func measureEpisodes(t *testing.T, warm *Warm) {
	t.Helper()
	var corpus []string
	for i := range warm.Bugs {
		for _, tr := range []*rollout.Trajectory{warm.Injections[i], warm.Solutions[i]} {
			for _, m := range tr.Messages {
				corpus = append(corpus, m.Content)
			}
			for _, turn := range tr.Turns {
				corpus = append(corpus, turn.Text, turn.Observation)
			}
		}
	}
	tok, err := token.Train(corpus, token.TrainOptions{VocabSize: 2048, Specials: token.ChatMLSpecials})
	if err != nil {
		t.Fatal(err)
	}
	chat, err := token.NewChat(tok)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		list []*rollout.Trajectory
		most int
	}{{warm.Injections, 900}, {warm.Solutions, 600}} {
		sum, longest := 0, 0
		for _, tr := range c.list {
			ids, sampled := rollout.Replay(chat, tr)
			sum, longest = sum+len(ids), max(longest, len(ids))
			if len(ids) != len(sampled) || len(ids) > c.most {
				t.Errorf("%s: %d tokens, at most %d are allowed", tr.ID, len(ids), c.most)
			}
		}
		t.Logf("%s episodes: %d, mean %d tokens, longest %d", c.list[0].Role, len(c.list), sum/len(c.list), longest)
	}
}
