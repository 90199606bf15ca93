package rpc

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCalls(t *testing.T) {
	s, err := Listen("127.0.0.1", "secret")
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan struct{})
	Handle(s, "double", func(_ context.Context, x []float64) ([]float64, error) {
		for i := range x {
			x[i] *= 2
		}
		return x, nil
	})
	Handle(s, "fail", func(context.Context, bool) (bool, error) { return false, errors.New("out of luck") })
	Handle(s, "wait", func(ctx context.Context, _ bool) (bool, error) {
		close(waiting)
		<-ctx.Done()
		return false, ctx.Err()
	})
	called, ended := make(chan struct{}), make(chan struct{})
	Handle(s, "endless", func(ctx context.Context, _ bool) (bool, error) {
		close(called)
		<-ctx.Done()
		close(ended)
		return false, ctx.Err()
	})
	HandleStream(s, "stream", func(w io.Writer) error { _, err := io.WriteString(w, "all"); return err })
	HandleStream(s, "torn", func(w io.Writer) error { io.WriteString(w, "ha"); return errors.New("disk") })
	s.Start()
	c := Dial(s.Addr(), "secret")
	defer c.Close()

	x := []float64{0.1, math.Inf(-1), math.NaN(), math.SmallestNonzeroFloat64}
	y, err := Call[[]float64](t.Context(), c, "double", x)
	if err != nil || y[0] != 0.2 || y[1] != math.Inf(-1) || !math.IsNaN(y[2]) || y[3] != 2*x[3] {
		t.Errorf("%v, %v", y, err)
	}
	if _, err := Call[bool](t.Context(), c, "fail", true); err == nil || err.Error() != "out of luck" {
		t.Errorf("%v", err)
	}
	for name, want := range map[string]string{"stream": "all", "torn": ""} {
		r, err := c.Open(t.Context(), name)
		if err != nil {
			if name == "torn" {
				continue
			}
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if name == "stream" && (string(got) != want || err != nil) || name == "torn" && err == nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	stranger := Dial(s.Addr(), "guess")
	defer stranger.Close()
	if _, err := Call[[]float64](t.Context(), stranger, "double", x); err == nil || !strings.Contains(err.Error(), "wrong secret") {
		t.Errorf("a stranger: %v", err)
	}
	// A caller that goes away ends the call.
	impatient, cancel := context.WithCancel(t.Context())
	go func() { <-called; cancel() }()
	if _, err := Call[bool](impatient, c, "endless", true); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-ended
	// A server that goes away in the middle of a call.
	go func() { <-waiting; s.Close() }()
	if _, err := Call[bool](t.Context(), c, "wait", true); err == nil || !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "wait at "+s.Addr()) {
		t.Errorf("%v", err)
	}
	late, end := context.WithCancelCause(t.Context())
	end(errors.New("too late"))
	if _, err := Call[bool](late, c, "wait", true); err == nil || !strings.Contains(err.Error(), "too late") {
		t.Errorf("%v", err)
	}
}

// TestFinish: a call that ends the server is answered.
func TestFinish(t *testing.T) {
	s, err := Listen("127.0.0.1", "secret")
	if err != nil {
		t.Fatal(err)
	}
	called := make(chan struct{})
	Handle(s, "leave", func(context.Context, int) (int, error) {
		close(called)
		time.Sleep(50 * time.Millisecond) // Finish is waiting by then
		return 7, nil
	})
	s.Start()
	finished := make(chan error, 1)
	go func() {
		<-called
		finished <- s.Finish(t.Context())
		s.Close()
	}()
	c := Dial(s.Addr(), "secret")
	defer c.Close()
	if got, err := Call[int](t.Context(), c, "leave", 1); got != 7 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	if err := <-finished; err != nil {
		t.Error(err)
	}
}
