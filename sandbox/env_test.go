package sandbox_test

import (
	"context"
	"maps"
	"testing"

	"github.com/ssr-go/ssr/sandbox"
)

// starter is a backend that keeps the specs it is given.
type starter struct {
	sandbox.Backend
	specs []sandbox.Spec
}

func (s *starter) Start(_ context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	s.specs = append(s.specs, spec)
	return nil, nil
}

func TestWithEnv(t *testing.T) {
	s := &starter{}
	b := sandbox.WithEnv(s, map[string]string{"PATH": "/opt/bin", "A": "1"})
	own := map[string]string{"A": "2", "B": "3"}
	for _, env := range []map[string]string{own, nil} {
		if _, err := b.Start(t.Context(), sandbox.Spec{Dir: "d", Env: env}); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []map[string]string{{"PATH": "/opt/bin", "A": "2", "B": "3"}, {"PATH": "/opt/bin", "A": "1"}} {
		if got := s.specs[i]; got.Dir != "d" || !maps.Equal(got.Env, want) {
			t.Errorf("start %d: %+v, want the environment %v", i, got, want)
		}
	}
	if len(own) != 2 {
		t.Errorf("the caller's map was changed: %v", own)
	}
}

func TestCheckEnv(t *testing.T) {
	for name, value := range map[string]string{"": "x", "a=b": "x", "a\x00": "x", "a": "x\x00"} {
		if sandbox.CheckEnv(map[string]string{name: value}) == nil {
			t.Errorf("%q=%q was accepted", name, value)
		}
	}
	if err := sandbox.CheckEnv(map[string]string{"PATH": "a=b:c", "EMPTY": ""}); err != nil {
		t.Error(err)
	}
}
