// Package device runs work on the threads that own tensors. A Worker is one
// goroutine locked to its OS thread: libtorch keeps its last error, and a CUDA
// context its current device, per thread. On a CPU there is a worker per core,
// each computing a part of its own with one thread.
//
// The package knows nothing of tensors and needs no cgo.
package device

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// ErrClosed is what Do returns once the worker has been closed.
var ErrClosed = errors.New("device: worker is closed")

// Worker is one goroutine, locked to its thread, that runs one function at a
// time in the order in which they were accepted.
type Worker struct {
	tasks chan task
	quit  chan struct{} // closed to end the goroutine
	ended chan struct{} // closed when it has ended
	close sync.Once
}

type task struct {
	run  func() error
	done chan outcome
}

type outcome struct {
	err   error
	panic any
}

// NewWorker starts a worker; Close ends it.
func NewWorker() *Worker {
	w := &Worker{tasks: make(chan task), quit: make(chan struct{}), ended: make(chan struct{})}
	go w.loop()
	return w
}

func (w *Worker) loop() {
	// Never unlocked: the thread ends with the goroutine, and what a native
	// library left on it goes too.
	runtime.LockOSThread()
	defer close(w.ended)
	for {
		select {
		case t := <-w.tasks:
			t.done <- perform(t.run)
		case <-w.quit:
			return
		}
	}
}

func perform(f func() error) (o outcome) {
	defer func() { o.panic = recover() }()
	return outcome{err: f()}
}

// Do runs f on the worker and returns its error. A panic of f continues in the
// caller. While the worker is busy, Do gives up with the context's error when
// the context ends; once f runs, Do waits for it, because f uses the caller's
// memory: a long f watches the context itself. f must not call Do of the same
// worker.
func (w *Worker) Do(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan outcome, 1)
	select {
	case w.tasks <- task{f, done}:
	case <-w.quit:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	o := <-done
	if o.panic != nil {
		panic(o.panic)
	}
	return o.err
}

// Close ends the worker after the function that it is running, and waits for
// that. It may be called more than once.
func (w *Worker) Close() {
	w.close.Do(func() { close(w.quit) })
	<-w.ended
}

// Pool is a fixed set of workers, numbered from 0.
type Pool struct{ workers []*Worker }

// NewPool starts n workers; n of 0 or less means one per usable core.
func NewPool(n int) *Pool {
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	p := &Pool{workers: make([]*Worker, n)}
	for i := range p.workers {
		p.workers[i] = NewWorker()
	}
	return p
}

// Size is the number of workers.
func (p *Pool) Size() int { return len(p.workers) }

// Do runs f on one worker, as Worker.Do does.
func (p *Pool) Do(ctx context.Context, worker int, f func() error) error {
	return p.workers[worker].Do(ctx, f)
}

// Each runs f once on every worker, waits for all of them, and returns the error
// of the lowest-numbered worker that failed. A panic of f continues in the
// caller after all have ended.
func (p *Pool) Each(ctx context.Context, f func(worker int) error) error {
	outcomes := make([]outcome, len(p.workers))
	var wait sync.WaitGroup
	for i, w := range p.workers {
		wait.Go(func() {
			outcomes[i] = perform(func() error { return w.Do(ctx, func() error { return f(i) }) })
		})
	}
	wait.Wait()
	for _, o := range outcomes {
		if o.panic != nil {
			panic(o.panic)
		}
	}
	for i, o := range outcomes {
		if o.err != nil {
			return fmt.Errorf("worker %d: %w", i, o.err)
		}
	}
	return nil
}

// Close ends all workers.
func (p *Pool) Close() {
	for _, w := range p.workers {
		w.Close()
	}
}
