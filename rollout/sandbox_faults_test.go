package rollout

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/fake"
)

// boxEnv is an episode of three turns, each a command in a sandbox.
type boxEnv struct {
	backend sandbox.Backend
	owner   string
	box     sandbox.Sandbox
	turns   int
}

func (e *boxEnv) Start(ctx context.Context) ([]Message, error) {
	box, err := e.backend.Start(ctx, sandbox.Spec{Owner: e.owner})
	if err != nil {
		return nil, err
	}
	e.box = box
	return []Message{{Role: "user", Content: "go"}}, nil
}

func (e *boxEnv) Step(ctx context.Context, _ Action) (Feedback, error) {
	r, err := e.box.Exec(ctx, sandbox.Cmd{Args: []string{"work"}})
	if err != nil {
		return Feedback{}, err
	}
	e.turns++
	if e.turns == 3 {
		if _, err := e.box.Harvest(ctx); err != nil {
			return Feedback{}, err
		}
		return Feedback{Tool: "submit", Done: true, Outcome: "done"}, nil
	}
	return Feedback{Text: fmt.Sprint(r.TimedOut), Tool: "bash"}, nil
}

func (e *boxEnv) Close() error {
	if e.box == nil {
		return nil
	}
	return e.box.Close()
}

// 2,000 episodes in sandboxes, one in twenty with a fault of the backend: each is
// delivered once with what became of it, and no sandbox is left.
func TestNoSandboxIsLostUnderFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		backend := fake.New(func(ctx context.Context, _ *fake.Sandbox, _ sandbox.Cmd) (sandbox.Result, error) {
			time.Sleep(10 * time.Millisecond)
			return sandbox.Result{}, nil
		})
		r := NewRunner(Player{Policy: &talker{text: "hello"}, Chat: ByteChat{}}, 64)
		r.Retries, r.Deadline = 2, time.Minute

		ops := []fake.Op{fake.Start, fake.Exec, fake.Harvest, fake.Close}
		want := map[string]string{}
		tasks := make([]Task, n)
		faults := 0
		for i := range tasks {
			id := fmt.Sprintf("e%04d", i)
			want[id] = "scored"
			if i%20 == 7 {
				op := ops[faults%len(ops)]
				for attempt := range 3 {
					f := fake.Fault{Op: op, Owner: fmt.Sprintf("%s try %d", id, attempt+1), Err: fake.ErrLost}
					switch faults % 3 {
					case 0: // lost once, then well
						if attempt > 0 {
							continue
						}
					case 1: // lost for good
						want[id] = FailSandbox
					case 2: // hangs until the episode's deadline; a hanging Close would hang for ever
						if op == fake.Close {
							want[id] = FailSandbox
						} else {
							f.Err, f.Hang, want[id] = nil, true, FailDeadline
						}
					}
					backend.Inject(f)
				}
				faults++
			}
			var tries atomic.Int64
			tasks[i] = Task{ID: id, Group: "g", Role: Solver, Env: func() (Env, error) {
				return &boxEnv{backend: backend, owner: fmt.Sprintf("%s try %d", id, tries.Add(1))}, nil
			}}
		}
		got := map[string]string{}
		if err := r.Run(t.Context(), tasks, func(x *Trajectory) {
			if _, twice := got[x.ID]; twice {
				t.Errorf("%s was delivered twice", x.ID)
			}
			got[x.ID] = x.FailureKind()
			if x.Status == Scored {
				got[x.ID] = "scored"
			}
		}); err != nil {
			t.Error(err)
		}
		for id, w := range want {
			if got[id] != w {
				t.Errorf("%s: %q, want %q", id, got[id], w)
			}
		}
		if backend.Live() != 0 {
			t.Errorf("%d sandboxes are left", backend.Live())
		}
	})
}
