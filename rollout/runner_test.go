package rollout

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stepEnv ends after turns steps; step is called before each.
type stepEnv struct {
	turns  int
	step   func(ctx context.Context, n int) error
	closed *atomic.Int64
	n      int
}

func (e *stepEnv) Start(context.Context) ([]Message, error) {
	return []Message{{Role: "user", Content: "go"}}, nil
}

func (e *stepEnv) Step(ctx context.Context, a Action) (Feedback, error) {
	e.n++
	if e.step != nil {
		if err := e.step(ctx, e.n); err != nil {
			return Feedback{}, err
		}
	}
	if e.n == e.turns {
		return Feedback{Tool: "submit", Done: true, Outcome: "done"}, nil
	}
	return Feedback{Text: fmt.Sprintf("saw %d bytes", len(a.Text)), Tool: "bash"}, nil
}

func (e *stepEnv) Close() error {
	if e.closed != nil {
		e.closed.Add(1)
	}
	return nil
}

// talker is a policy that writes the same turn each time and counts who it holds state for.
type talker struct {
	text string
	wait time.Duration
	fail func(id string) error
	held sync.Map
}

func (p *talker) Generate(ctx context.Context, req gen.Request) (gen.Completion, error) {
	p.held.Store(req.ID, true)
	if p.wait > 0 && !sleep(ctx, p.wait) {
		return gen.Completion{Finish: gen.FinishCancelled}, nil
	}
	if p.fail != nil {
		if err := p.fail(req.ID); err != nil {
			return gen.Completion{}, err
		}
	}
	c := gen.Completion{Tokens: append(byteIDs(nil, p.text), EndOfTurn), Finish: gen.FinishStop}
	if len(c.Tokens) > req.MaxTokens {
		c.Tokens, c.Finish = c.Tokens[:req.MaxTokens], gen.FinishLength
	}
	for i := range c.Tokens {
		c.Logprobs = append(c.Logprobs, -float32(len(req.Tokens)+i))
		c.Versions = append(c.Versions, 7)
	}
	return c, nil
}

func (p *talker) Release(id string) { p.held.Delete(id) }

func (p *talker) holding() (n int) {
	p.held.Range(func(any, any) bool { n++; return true })
	return n
}

// chance is a reproducible draw in [0, 1) for a name.
func chance(name string) float64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return float64(h.Sum64()>>11) / (1 << 53)
}

func TestEveryEpisodeIsAccountedForUnderFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		var opened, closed atomic.Int64
		var inFlight, most atomic.Int64
		policy := &talker{text: "hello", wait: 50 * time.Millisecond}
		r := NewRunner(Player{Policy: policy, Chat: ByteChat{}}, 64)
		r.Retries, r.Deadline = 2, time.Minute

		var attempts sync.Map // id → *atomic.Int64
		want := map[string]string{}
		tasks := make([]Task, n)
		for i := range tasks {
			id := fmt.Sprintf("e%04d", i)
			// 5% of episodes are given a fault, one of six kinds in turn.
			fault := -1
			if chance(id) < 0.05 {
				fault = i % 6
			}
			want[id] = map[int]string{-1: "scored", 0: "scored", 1: "sandbox", 2: "panic", 3: "environment", 4: "deadline", 5: "scored"}[fault]
			var count atomic.Int64
			attempts.Store(id, &count)
			tasks[i] = Task{ID: id, Group: "g", Role: Solver, Env: func() (Env, error) {
				try := count.Add(1)
				if fault == 5 && try == 1 {
					return nil, fmt.Errorf("no room: %w", sandbox.ErrInfrastructure)
				}
				opened.Add(1)
				most.Store(max(most.Load(), inFlight.Add(1)))
				return &stepEnv{turns: 3, closed: &closed, step: func(ctx context.Context, k int) error {
					if k == 3 {
						inFlight.Add(-1)
					}
					if k != 2 {
						return nil
					}
					switch {
					case fault == 0 && try == 1, fault == 1: // lost once; lost for good
						inFlight.Add(-1)
						return fmt.Errorf("lost: %w", sandbox.ErrInfrastructure)
					case fault == 2:
						inFlight.Add(-1)
						panic("broken invariant")
					case fault == 3:
						inFlight.Add(-1)
						return errors.New("a bug in the environment")
					case fault == 4:
						<-ctx.Done()
						inFlight.Add(-1)
						return ctx.Err()
					}
					return nil
				}}, nil
			}}
		}

		got := map[string]string{}
		err := r.Run(t.Context(), tasks, func(tr *Trajectory) {
			if _, twice := got[tr.ID]; twice {
				t.Errorf("%s was delivered twice", tr.ID)
			}
			got[tr.ID] = tr.FailureKind()
			if tr.Status == Scored {
				got[tr.ID] = "scored"
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != n {
			t.Fatalf("%d of %d episodes were delivered", len(got), n)
		}
		kinds := map[string]int{}
		for id, kind := range got {
			kinds[kind]++
			if kind != want[id] {
				t.Errorf("%s ended as %q, want %q", id, kind, want[id])
			}
		}
		if len(kinds) != 5 {
			t.Errorf("the faults did not all strike: %v", kinds)
		}
		attempts.Range(func(id, c any) bool {
			tries := c.(*atomic.Int64).Load()
			if want[id.(string)] == "sandbox" && tries != 3 {
				t.Errorf("%v was tried %d times, want 3", id, tries)
			}
			return true
		})
		if opened.Load() != closed.Load() {
			t.Errorf("%d environments opened, %d closed", opened.Load(), closed.Load())
		}
		if most.Load() > 64 {
			t.Errorf("%d episodes were in flight at once, 64 are allowed", most.Load())
		}
		if policy.holding() != 0 {
			t.Errorf("the policy still holds %d trajectories", policy.holding())
		}
	})
}

func TestCancellationDeliversEveryTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		r := NewRunner(Player{Policy: &talker{text: "x", wait: time.Second}, Chat: ByteChat{}}, 10)
		tasks := make([]Task, 100)
		for i := range tasks {
			tasks[i] = Task{ID: fmt.Sprint(i), Env: func() (Env, error) { return &stepEnv{turns: 2}, nil }}
		}
		time.AfterFunc(5*time.Second+time.Millisecond, func() { cancel(stop) })
		count := map[Status]int{}
		err := r.Run(ctx, tasks, func(tr *Trajectory) { count[tr.Status]++ })
		// Ten at a time, two seconds each: two rounds are over when the third is cut.
		if !errors.Is(err, stop) || count[Scored] != 20 || count[Cancelled] != 80 {
			t.Errorf("err %v, delivered %v; want 20 scored and 80 cancelled", err, count)
		}
	})
}

func TestScoringIsRepeatedWithoutTheEpisode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRunner(Player{Policy: &talker{text: "x"}, Chat: ByteChat{}}, 1)
		r.Retries = 3
		played, scored := 0, 0
		task := Task{ID: "a", Env: func() (Env, error) { played++; return &stepEnv{turns: 1}, nil },
			Score: func(_ context.Context, _ Env, tr *Trajectory) error {
				if scored++; scored < 3 {
					return fmt.Errorf("verdict: %w", sandbox.ErrInfrastructure)
				}
				tr.Reward = 1
				return nil
			}}
		var got *Trajectory
		if err := r.Run(t.Context(), []Task{task}, func(tr *Trajectory) { got = tr }); err != nil {
			t.Fatal(err)
		}
		if got.Status != Scored || got.Reward != 1 || played != 1 || scored != 3 {
			t.Errorf("status %s, reward %v, played %d, scored %d times; want scored, 1, 1, 3", got.Status, got.Reward, played, scored)
		}
	})
}

// The waits between tries double up to a minute, in virtual time, however many there are.
func TestRetriesWaitLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRunner(Player{Policy: &talker{text: "x"}, Chat: ByteChat{}}, 1)
		r.Retries = 70
		var at []time.Time
		task := Task{ID: "e", Env: func() (Env, error) {
			at = append(at, time.Now())
			return nil, sandbox.ErrInfrastructure
		}}
		if err := r.Run(t.Context(), []Task{task}, func(*Trajectory) {}); err != nil {
			t.Fatal(err)
		}
		if len(at) != 71 {
			t.Fatalf("%d tries, want 71", len(at))
		}
		want := 200 * time.Millisecond
		for i := range at[1:] {
			if got := at[i+1].Sub(at[i]); got != min(want, time.Minute) {
				t.Errorf("wait %d is %v, want %v", i+1, got, min(want, time.Minute))
			}
			if want < time.Minute {
				want *= 2
			}
		}
	})
}

func TestTrajectoryHoldsExactlyWhatWasSampled(t *testing.T) {
	p := Player{Policy: &talker{text: "abc"}, Chat: ByteChat{}}
	tr := &Trajectory{ID: "t"}
	if err := p.Play(t.Context(), &stepEnv{turns: 2}, tr); err != nil {
		t.Fatal(err)
	}
	// "go" EOT | "abc" EOT | "saw 3 bytes" EOT | "abc" EOT
	if len(tr.Tokens) != 3+4+12+4 {
		t.Fatalf("%d tokens, want 23", len(tr.Tokens))
	}
	for i := range tr.Tokens {
		sampled := i >= 3 && i < 7 || i >= 19
		wantLog, wantVersion := float32(0), int64(-1)
		if sampled {
			wantLog, wantVersion = -float32(i), 7
		}
		if tr.Trained[i] != sampled || tr.Logprobs[i] != wantLog || tr.Versions[i] != wantVersion {
			t.Errorf("token %d: trained %v, logprob %v, version %d; want %v, %v, %d",
				i, tr.Trained[i], tr.Logprobs[i], tr.Versions[i], sampled, wantLog, wantVersion)
		}
	}
	if len(tr.Turns) != 2 || tr.Turns[1].Start != 19 || tr.Turns[1].End != 23 || tr.Outcome != "done" {
		t.Errorf("turns %+v, outcome %q", tr.Turns, tr.Outcome)
	}
}

func TestBudgets(t *testing.T) {
	big := strings.Repeat("0123456789", 100)
	for _, c := range []struct {
		name    string
		limits  Limits
		text    string
		outcome string
		turns   int
		tokens  int
	}{
		{"turns", Limits{Turns: 2}, "abc", OutcomeTurns, 2, 3 + 4 + 12 + 4 + 12},
		{"context cuts a turn", Limits{Context: 6}, "abcdefgh", OutcomeContext, 1, 6},
		{"context refuses an observation", Limits{Context: 12}, "abc", OutcomeContext, 1, 7},
		{"prompt fills the context", Limits{Context: 3}, "abc", OutcomeContext, 0, 3},
		// A cut turn is closed by one token before its observation.
		{"turn tokens", Limits{TurnTokens: 10, Turns: 1}, big, OutcomeTurns, 1, 3 + 10 + 1 + 13},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := &Trajectory{ID: "t"}
			p := Player{Policy: &talker{text: c.text}, Chat: ByteChat{}, Limits: c.limits}
			if err := p.Play(t.Context(), &stepEnv{turns: 100}, tr); err != nil {
				t.Fatal(err)
			}
			if tr.Outcome != c.outcome || len(tr.Turns) != c.turns || len(tr.Tokens) != c.tokens {
				t.Errorf("outcome %q after %d turns and %d tokens; want %q, %d, %d",
					tr.Outcome, len(tr.Turns), len(tr.Tokens), c.outcome, c.turns, c.tokens)
			}
		})
	}
}

func TestLongObservationLosesItsMiddle(t *testing.T) {
	p := Player{Chat: ByteChat{}}
	text := "HEAD" + strings.Repeat("é", 5000) + "TAIL"
	ids, shown := p.observation(text, true, 400)
	if len(ids) > 400 || len(ids) < 300 {
		t.Fatalf("%d tokens for a limit of 400", len(ids))
	}
	if !strings.HasPrefix(shown, "HEAD") || !strings.HasSuffix(shown, "TAIL") || !strings.Contains(shown, "bytes cut") || strings.Contains(shown, "\uFFFD") {
		t.Errorf("cut text is %q", shown)
	}
}

// dense is a Chat in which a token is an x, or eight other bytes.
type dense struct{ ByteChat }

func (dense) Observation(text string, _ bool) []int32 {
	x := strings.Count(text, "x")
	return make([]int32, x+(len(text)-x)/8)
}

// What is cut is told right where it takes several tries to find out how much to cut.
func TestCutBytesAreCounted(t *testing.T) {
	text := strings.Repeat("x", 2000) + strings.Repeat("a", 20000) + strings.Repeat("x", 2000)
	p := Player{Chat: dense{}}
	ids, shown := p.observation(text, true, 400)
	head, rest, _ := strings.Cut(shown, "\n[… ")
	number, tail, ok := strings.Cut(rest, " bytes cut …]\n")
	cut, err := strconv.Atoi(number)
	if err != nil || !ok || len(ids) > 400 || len(head)+cut+len(tail) != len(text) {
		t.Errorf("%d bytes, %q cut, %d bytes of %d, in %d tokens; %v", len(head), number, len(tail), len(text), len(ids), err)
	}
}

func TestBrokenPoliciesAreFailuresNotData(t *testing.T) {
	for name, c := range map[string]gen.Completion{
		"empty":    {Finish: gen.FinishStop},
		"ragged":   {Tokens: []int32{1, 2}, Logprobs: []float32{0}, Versions: []int64{0, 0}, Finish: gen.FinishStop},
		"too long": {Tokens: make([]int32, 99), Logprobs: make([]float32, 99), Versions: make([]int64, 99), Finish: gen.FinishStop},
	} {
		r := NewRunner(Player{Policy: policyFunc(func() gen.Completion { return c }), Chat: ByteChat{}, Limits: Limits{TurnTokens: 9}}, 1)
		var got *Trajectory
		task := Task{ID: "x", Env: func() (Env, error) { return &stepEnv{turns: 1}, nil }}
		if err := r.Run(t.Context(), []Task{task}, func(tr *Trajectory) { got = tr }); err != nil {
			t.Fatal(err)
		}
		if got.FailureKind() != FailPolicy {
			t.Errorf("%s completion: status %s, failure %q; want a policy failure", name, got.Status, got.Failure)
		}
	}
}

type policyFunc func() gen.Completion

func (f policyFunc) Generate(context.Context, gen.Request) (gen.Completion, error) { return f(), nil }
