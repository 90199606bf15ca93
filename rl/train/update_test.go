package train

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"gorgonia.org/gorgonia"

	"github.com/ssr-go/ssr/rl"
)

// TestMicroBatches: the token budget does not change what is learnt.
func TestMicroBatches(t *testing.T) {
	small, big := testSettings(4), testSettings(4)
	small.TokenBudget, big.TokenBudget = 4, 100000
	a, la, _, err := play(t, Options{Settings: small, Seed: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, lb, _, err := play(t, Options{Settings: big, Seed: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if la[0].MicroBatches < 5 || lb[0].MicroBatches != 1 {
		t.Fatalf("%d and %d micro-batches", la[0].MicroBatches, lb[0].MicroBatches)
	}
	for i := range a.W {
		for j := range a.W[i] {
			if math.Abs(a.W[i][j]-b.W[i][j]) > 1e-9 {
				t.Fatalf("weight %d, %d is %g in small and %g in one batch", i, j, a.W[i][j], b.W[i][j])
			}
		}
	}
	for k := range la {
		for name, v := range la[k].Objective {
			if math.Abs(v-lb[k].Objective[name]) > 1e-9 {
				t.Errorf("step %d: %s is %g and %g", k+1, name, v, lb[k].Objective[name])
			}
		}
		if la[k].Loss == nil {
			t.Fatalf("step %d made no update", k+1)
		}
		if math.Abs(*la[k].Loss-*lb[k].Loss) > 1e-9 || math.Abs(*la[k].GradNorm-*lb[k].GradNorm) > 1e-9 {
			t.Errorf("step %d: loss %g and %g, norm %g and %g", k+1, *la[k].Loss, *lb[k].Loss, *la[k].GradNorm, *lb[k].GradNorm)
		}
	}
}

// TestOldAnchor: on fresh data the policy that began the step is the one that
// sampled, so that decoupled PPO, in one update a step or in several, takes the
// run that PPO does, up to the sampler's float32.
func TestOldAnchor(t *testing.T) {
	for _, epochs := range []int{1, 2} {
		run := func(objective string, change func(*table, *puzzle)) (*table, error) {
			s := testSettings(4)
			s.Objective, s.Epochs, s.Minibatches = objective, epochs, epochs
			var err error
			if s.Loss, err = rl.Defaults(objective); err != nil {
				t.Fatal(err)
			}
			p, _, _, err := play(t, Options{Settings: s}, change)
			return p, err
		}
		want, err := run("ppo", nil)
		if err != nil {
			t.Fatal(err)
		}
		have, err := run("decoupled_ppo", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want.W {
			for j, w := range want.W[i] {
				if math.Abs(have.W[i][j]-w) > 1e-5 {
					t.Errorf("%d epochs: weight %d, %d is %g, with ppo %g", epochs, i, j, have.W[i][j], w)
				}
			}
		}
		boom := errors.New("boom")
		_, err = run("decoupled_ppo", func(p *table, _ *puzzle) {
			p.fail = func(call string) error {
				if call == "score" {
					return boom
				}
				return nil
			}
		})
		if scored := errors.Is(err, boom); scored != (epochs > 1) {
			t.Errorf("%d epochs: error %v", epochs, err)
		}
	}
	s := testSettings(1)
	s.Objective, s.Epochs = "icepop", 2
	s.Loss, _ = rl.Defaults("icepop")
	p := &table{}
	_, err := Train(context.Background(), Options{Settings: s, Dir: t.TempDir()}, struct{ Learner }{p}, &puzzle{policy: p})
	if err == nil || !strings.Contains(err.Error(), "a learner that scores") {
		t.Errorf("error %v", err)
	}
}

// referring is a table with a reference policy, which gives every token logprob −1.
type referring struct{ *table }

func (referring) ReferenceLogprobs(_ context.Context, batches []rl.Packed) ([][]float64, error) {
	all := make([][]float64, len(batches))
	for i, b := range batches {
		all[i] = slices.Repeat([]float64{-1}, len(b.Mask))
	}
	return all, nil
}

// TestReference: an objective that reads the reference has it, whatever its kl_coef, and
// a learner without one is refused.
func TestReference(t *testing.T) {
	var seen []float64
	rl.Register("referring", rl.Family{
		Defaults: rl.Settings{Aggregation: rl.TokenMean},
		Build: func(rl.Settings) (rl.Expression, error) {
			return rl.Expression{Build: func(in *rl.Inputs) *gorgonia.Node {
				in.Frozen("seen", func(tokens rl.Tokens, out []float64) { seen = append(seen, tokens.References...) })
				return gorgonia.Must(gorgonia.Square(gorgonia.Must(gorgonia.Sub(in.Logprob(), in.Reference()))))
			}}, nil
		},
	})
	s := testSettings(1)
	s.Objective = "referring"
	s.Loss, _ = rl.Defaults("referring")
	if !s.NeedsReference() || testSettings(1).NeedsReference() {
		t.Error("NeedsReference is true of clip, or false of an objective that reads the reference")
	}
	if _, _, _, err := play(t, Options{Settings: s}, nil); err == nil || !strings.Contains(err.Error(), "reads a reference policy") {
		t.Errorf("a learner without a reference: error %v", err)
	}
	p := &table{}
	if _, err := Train(context.Background(), Options{Settings: s, Dir: t.TempDir()}, referring{p}, &puzzle{policy: p}); err != nil {
		t.Fatal(err)
	}
	if len(seen) == 0 || slices.ContainsFunc(seen, func(x float64) bool { return x != -1 }) {
		t.Errorf("the reference's log-probabilities are %v, want −1 for every token", seen)
	}
}

// TestRecordBatches: a recorded batch has the loss of its update.
func TestRecordBatches(t *testing.T) {
	s, dir := testSettings(4), t.TempDir()
	s.RecordBatches, s.TokenBudget = 2, 30
	_, lines, _, err := play(t, Options{Settings: s, Dir: dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Join(dir, batchesName))
	if err != nil || len(files) != 2 {
		t.Fatalf("%d batches, %v; want those of steps 2 and 4", len(files), err)
	}
	o, err := rl.New(s.Objective, s.Loss)
	if err != nil {
		t.Fatal(err)
	}
	for k, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, batchesName, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		r, err := rl.ParseRecorded(data)
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.Batch(nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := o.Evaluate(b)
		if err != nil {
			t.Fatal(err)
		}
		if m := lines[2*k+1]; m.MicroBatches < 2 || math.Abs(res.Loss-*m.Loss) > 1e-12 {
			t.Errorf("%s: loss %g, the update's %d micro-batches had %g", f.Name(), res.Loss, m.MicroBatches, *m.Loss)
		}
	}
}

func TestNonFinite(t *testing.T) {
	s := testSettings(8)
	dir := t.TempDir()
	spoil := func(bad ...int) func(*table, *puzzle) {
		return func(p *table, _ *puzzle) {
			var mu sync.Mutex
			n := 0
			p.fail = func(c string) error {
				mu.Lock()
				defer mu.Unlock()
				if c == "logprobs" {
					if n++; slices.Contains(bad, n) {
						return errors.New("NaN")
					}
				}
				return nil
			}
		}
	}
	s.TokenBudget = 100000 // one micro-batch a step
	p, lines, sum, err := play(t, Options{Settings: s, Dir: dir}, spoil(2, 4, 5))
	if err != nil {
		t.Fatal(err)
	}
	if sum.Skipped != 3 || lines[7].Skipped != 3 || p.N != 5 || lines[1].Updates != 0 || lines[1].Loss != nil {
		t.Errorf("%d skipped, version %d, second step %+v", sum.Skipped, p.N, lines[1].UpdateMetrics)
	}
	_, _, sum, err = play(t, Options{Settings: s}, spoil(3, 4, 5, 6))
	if !errors.Is(err, rl.ErrNonFinite) || !strings.Contains(err.Error(), "3 updates in a row") || sum.Steps != 4 {
		t.Errorf("after step %d: %v", sum.Steps, err)
	}
}

// several stands for a learner of so many replicas.
type several struct {
	table
	replicas int
}

func (s *several) Replicas() int { return s.replicas }

// TestPackForReplicas: an update has as much work for every replica, within the budget,
// in as few micro-batches as that takes.
func TestPackForReplicas(t *testing.T) {
	var seqs []rl.Sequence
	for i := range 12 {
		seqs = append(seqs, rl.Sequence{ID: string(rune('a' + i)), Tokens: make([]int32, 10), Trained: make([]bool, 10)})
	}
	for _, tc := range []struct {
		replicas, budget int
		want             []int
	}{
		{1, 1000, []int{120}}, {2, 1000, []int{60, 60}}, {4, 1000, []int{30, 30, 30, 30}},
		{4, 20, []int{20, 20, 20, 20, 10, 10, 10, 10}}, {50, 1000, slices.Repeat([]int{10}, 12)},
	} {
		u := &updater{learner: &several{replicas: tc.replicas}, updateSettings: updateSettings{budget: tc.budget}}
		packed, err := u.pack(seqs)
		var got []int
		for _, p := range packed {
			got = append(got, len(p.Tokens))
		}
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%d replicas, budget %d: micro-batches of %v, want %v (%v)", tc.replicas, tc.budget, got, tc.want, err)
		}
	}
}

// everything hides that an objective can do without some sequences.
type everything struct{ rl.Objective }

// TestIdleSequences: sequences without an advantage are not computed, and the update is
// that with them, bit for bit: what the loss is divided by counts them. A recorded batch
// has them, too.
func TestIdleSequences(t *testing.T) {
	var seqs []rl.Sequence
	for i, advantage := range []float64{1, 0, -0.5, 0, 0, 2} {
		s := rl.Sequence{ID: string(rune('a' + i)), Group: string(rune('p' + i%2)), Advantage: advantage}
		for k := range 4 + i {
			s.Tokens, s.Trained, s.Logprobs = append(s.Tokens, int32((i+k*k)%vocabulary)), append(s.Trained, k > 0), append(s.Logprobs, -1.8)
		}
		seqs = append(seqs, s)
	}
	var recorded *rl.Recorded
	train := func(hide bool, seqs []rl.Sequence) (*table, UpdateMetrics) {
		loss, err := rl.Defaults("dapo")
		if err != nil {
			t.Fatal(err)
		}
		l := &table{}
		u, err := newUpdater(l, "dapo", loss, updateSettings{1, DefaultAdamW(), Schedule{Kind: ConstantLR}, 3}) // each alone
		if err != nil {
			t.Fatal(err)
		}
		if hide {
			u.objective = everything{u.objective}
		}
		u.record = func(r *rl.Recorded) error {
			recorded = r
			return nil
		}
		m, err := u.run(t.Context(), &state{}, [][]rl.Sequence{seqs, seqs})
		if err != nil {
			t.Fatal(err)
		}
		return l, m
	}
	want, all := train(true, seqs)
	got, busy := train(false, seqs)
	if b, err := recorded.Batch(nil); err != nil || b.Totals.Tokens != rl.TotalsOf(seqs).Tokens || b.Totals.Sequences != len(seqs) {
		t.Errorf("the recorded batch has %+v (%v), want all %d sequences", b.Totals, err, len(seqs))
	}
	if got.W != want.W || got.M != want.M || got.V != want.V || got.N != 2 || got.W == (table{}).W {
		t.Errorf("weights %v, with every sequence computed %v", got.W, want.W)
	}
	if busy.MicroBatches != 6 || all.MicroBatches != 12 || math.Abs(*busy.Loss-*all.Loss) > 1e-15 || *busy.GradNorm != *all.GradNorm {
		t.Errorf("%d micro-batches, loss %v and norm %v; with every sequence %d, %v and %v",
			busy.MicroBatches, *busy.Loss, *busy.GradNorm, all.MicroBatches, *all.Loss, *all.GradNorm)
	}
	_, alone := train(false, []rl.Sequence{seqs[0], seqs[2], seqs[5]})
	// Metrics are of what is computed: of the first update, of the policy that all begin with.
	if *alone.LogprobGap != *busy.LogprobGap {
		t.Errorf("the largest gap is %v, of the others alone %v", *busy.LogprobGap, *alone.LogprobGap)
	}
	if _, none := train(false, []rl.Sequence{seqs[1], seqs[3]}); none.MicroBatches != 0 || none.Updates != 2 || *none.GradNorm != 0 {
		t.Errorf("without any advantage: %+v", none)
	}
}
