package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/fake"
)

func TestPoolBoundsTheLiving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var live, most atomic.Int64
		b := fake.New(func(context.Context, *fake.Sandbox, sandbox.Cmd) (sandbox.Result, error) {
			most.Store(max(most.Load(), live.Add(1)))
			time.Sleep(time.Second)
			live.Add(-1)
			return sandbox.Result{}, nil
		})
		p := sandbox.NewPool(b, 8)
		// One in twenty starts fails: its slot must not be lost.
		for n := range 200 {
			if n%20 == 0 {
				b.Inject(fake.Fault{Op: fake.Start, Nth: n + 1, Err: fake.ErrLost})
			}
		}
		var work sync.WaitGroup
		var failed atomic.Int64
		begin := time.Now()
		for i := range 200 {
			work.Go(func() {
				s, err := p.Start(t.Context(), sandbox.Spec{Owner: fmt.Sprint(i)})
				if err != nil {
					failed.Add(1)
					return
				}
				defer s.Close()
				defer s.Close() // twice gives one slot back
				s.Exec(t.Context(), sandbox.Cmd{Args: []string{"x"}})
			})
		}
		work.Wait()
		if most.Load() != 8 || failed.Load() != 10 || b.Live() != 0 {
			t.Errorf("%d at once, %d failed, %d are left; want 8, 10, 0", most.Load(), failed.Load(), b.Live())
		}
		// 190 commands of a second, eight at a time.
		if took := time.Since(begin); took != 24*time.Second {
			t.Errorf("took %v of virtual time, want 24s", took)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPoolWaitsNoLongerThanItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := sandbox.NewPool(fake.New(nil), 1)
		s, err := p.Start(t.Context(), sandbox.Spec{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := p.Start(ctx, sandbox.Spec{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		s.Close()
		if _, err := p.Start(t.Context(), sandbox.Spec{}); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestAForkTakesRoomInItsPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := fake.New(nil)
		p := sandbox.NewPool(b, 2)
		s, err := p.Start(t.Context(), sandbox.Spec{})
		if err != nil {
			t.Fatal(err)
		}
		fork, err := s.Fork(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Fork(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a third of two: %v", err)
		}
		b.Inject(fake.Fault{Op: fake.Fork, Nth: 2, Err: fake.ErrLost})
		fork.Close()
		if _, err := s.Fork(t.Context()); !errors.Is(err, fake.ErrLost) {
			t.Error(err)
		}
		if _, err := s.Fork(t.Context()); err != nil {
			t.Errorf("the room of a fork that failed is lost: %v", err)
		}
		if err := p.Close(); err != nil || b.Live() != 0 {
			t.Errorf("%d are left, %v", b.Live(), err)
		}
	})
}

func TestPoolKeepsSandboxesWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := fake.New(nil)
		b.Inject(fake.Fault{Op: fake.Start, Delay: time.Second}) // a slow start
		p := sandbox.NewPool(b, 0)
		spec := sandbox.Spec{Dir: t.TempDir(), Limits: sandbox.Limits{Lifetime: time.Hour}}
		p.Keep(spec, 3)
		synctest.Wait()
		time.Sleep(2 * time.Second)
		start := func(spec sandbox.Spec) (took time.Duration) {
			t.Helper()
			begin := time.Now()
			s, err := p.Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			took = time.Since(begin)
			defer s.Close()
			if err := s.WriteFile(t.Context(), "mark", nil, 0o644); err != nil {
				t.Error(err)
			}
			return took
		}
		seen := map[sandbox.Sandbox]bool{}
		for range 3 {
			s, err := p.Start(t.Context(), spec)
			if err != nil || seen[s] {
				t.Fatalf("%v, given out twice: %v", err, seen[s])
			}
			seen[s] = true
			if _, err := s.ReadFile(t.Context(), "mark", 1); err == nil {
				t.Error("a used sandbox was given out")
			}
			s.Close()
		}
		if took := start(spec); took != time.Second {
			t.Errorf("the fourth, before the shelf is full again, took %v", took)
		}
		time.Sleep(2 * time.Second)
		if took := start(spec); took != 0 {
			t.Errorf("a warm one took %v", took)
		}
		other := spec
		other.Env = map[string]string{"A": "1"}
		if took := start(other); took != time.Second {
			t.Errorf("another environment took %v", took)
		}
		time.Sleep(31 * time.Minute) // half a lifetime
		if took := start(spec); took != time.Second {
			t.Errorf("one that has waited too long was given out (%v)", took)
		}
		if err := p.Close(); err != nil || b.Live() != 0 {
			t.Errorf("%d are left, %v", b.Live(), err)
		}
	})
}
