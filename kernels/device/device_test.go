package device

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWorkerRunsOneAtATimeOnOneThread(t *testing.T) {
	w := NewWorker()
	defer w.Close()
	threads := map[int]bool{} // unsynchronised on purpose: the worker is the only one to touch it
	var wait sync.WaitGroup
	for range 50 {
		wait.Go(func() {
			if err := w.Do(t.Context(), func() error { threads[syscall.Gettid()] = true; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if len(threads) != 1 || threads[syscall.Gettid()] {
		t.Fatalf("ran on threads %v; want one, and not the caller's %d", threads, syscall.Gettid())
	}
}

func TestDoReturnsErrorsAndPanics(t *testing.T) {
	w := NewWorker()
	defer w.Close()
	want := errors.New("no")
	if err := w.Do(t.Context(), func() error { return want }); err != want {
		t.Fatalf("got %v, want %v", err, want)
	}
	func() {
		defer func() {
			if r := recover(); r != "broken" {
				t.Errorf("recovered %v, want the function's panic", r)
			}
		}()
		w.Do(t.Context(), func() error { panic("broken") })
	}()
	if err := w.Do(t.Context(), func() error { return nil }); err != nil {
		t.Fatalf("the worker did not survive a panic: %v", err)
	}
}

func TestDoGivesUpOnlyBeforeItStarts(t *testing.T) {
	w := NewWorker()
	defer w.Close()
	started, release := make(chan struct{}), make(chan struct{})
	first := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		first <- w.Do(ctx, func() error { close(started); <-release; return nil })
	}()
	<-started
	second := make(chan error)
	go func() { second <- w.Do(ctx, func() error { t.Error("ran after its context ended"); return nil }) }()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Fatalf("waiting call: %v, want cancelled", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Fatalf("running call: %v, want its own result", err)
	}
}

func TestClosedWorkerRefuses(t *testing.T) {
	w := NewWorker()
	w.Close()
	w.Close()
	if err := w.Do(t.Context(), func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v, want ErrClosed", err)
	}
}

func TestEachRunsOnAllWorkersAtOnce(t *testing.T) {
	p := NewPool(3)
	defer p.Close()
	var running atomic.Int32
	all := make(chan struct{})
	err := p.Each(t.Context(), func(worker int) error {
		if running.Add(1) == 3 {
			close(all)
		}
		<-all // deadlocks unless the three overlap
		if worker > 0 {
			return errors.New([]string{"", "one", "two"}[worker])
		}
		return nil
	})
	if err == nil || err.Error() != "worker 1: one" {
		t.Fatalf("got %v, want the first failing worker's error", err)
	}
}
