package sandboxtest

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

var lifeTests = []test{
	{"close", "", func(t *env) {
		s := t.start(map[string]string{"a": "x"}, sandbox.Limits{})
		t.must(s, "mkdir -p d/e; touch d/e/f; chmod 000 d/e d; chmod 000 /tmp/home")
		for range 3 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		ctx := t.Context()
		_, err1 := s.Exec(ctx, sandbox.Cmd{Args: []string{"true"}})
		_, err2 := s.ReadFile(ctx, "a", 1)
		err3 := s.WriteFile(ctx, "a", nil, 0o644)
		_, err4 := s.Harvest(ctx)
		for i, err := range []error{err1, err2, err3, err4} {
			if !errors.Is(err, sandbox.ErrClosed) || errors.Is(err, sandbox.ErrInfrastructure) {
				t.Errorf("method %d after Close: %v", i, err)
			}
		}
	}},
	{"close during a command", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{})
		mark := marker()
		var done sync.WaitGroup
		done.Go(func() {
			if _, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"sleep", mark}}); !errors.Is(err, sandbox.ErrClosed) {
				t.Errorf("exec: %v", err)
			}
		})
		time.Sleep(200 * time.Millisecond)
		t.within(5*time.Second, func() {
			for range 4 {
				done.Go(func() {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			done.Wait()
		})
		t.gone(mark)
	}},
	{"backend closes its sandboxes", "", func(t *env) {
		b := t.open()
		s := t.start(nil, sandbox.Limits{})
		mark := marker()
		var done sync.WaitGroup
		done.Go(func() { s.Exec(t.Context(), sandbox.Cmd{Args: []string{"sleep", mark}}) })
		time.Sleep(200 * time.Millisecond)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		done.Wait()
		t.gone(mark)
		if _, err := b.Start(t.Context(), sandbox.Spec{Dir: t.TempDir()}); err == nil {
			t.Error("a closed backend starts sandboxes")
		}
	}},
	{"many at once", "", func(t *env) {
		b, dir := t.open(), t.tree(map[string]string{"a": "x"})
		var done sync.WaitGroup
		for i := range 12 {
			done.Go(func() {
				s, err := b.Start(t.Context(), sandbox.Spec{Dir: dir})
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", "echo $0 >> a; cat a"}, Env: map[string]string{}, Stdin: nil})
				if err != nil || !r.OK() || string(r.Stdout) != "xbash\n" {
					t.Errorf("sandbox %d: %+v %v", i, r, err)
				}
			})
		}
		done.Wait()
	}},
	{"a source that is missing", "", func(t *env) {
		for _, dir := range []string{"/nonexistent/ssr-test", os.Args[0]} {
			if s, err := t.open().Start(t.Context(), sandbox.Spec{Dir: dir}); err == nil || errors.Is(err, sandbox.ErrInfrastructure) {
				t.Errorf("%s: %v %v, want a caller's error", dir, s, err)
			}
		}
	}},
	{"probe", "", func(t *env) {
		c, err := t.open().Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"filesystem", "network", "processes", "memory", "disk", "syscalls"} {
			if how, ok := c.Enforced[p]; !ok || how == "" && len(c.Notes) == 0 {
				t.Errorf("%s: %q, notes %q", p, how, c.Notes)
			}
		}
	}},
	{"sweep leaves the living alone", "", func(t *env) {
		s := t.start(nil, sandbox.Limits{})
		if n, err := t.open().Sweep(t.Context()); err != nil || n != 0 {
			t.Errorf("swept %d, %v", n, err)
		}
		t.must(s, "true")
	}},
}
