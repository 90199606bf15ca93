package rollout

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// Kinds of failure, the first word of Trajectory.Failure.
const (
	FailSandbox     = "sandbox"     // an error that wraps sandbox.ErrInfrastructure
	FailPolicy      = "policy"      // the policy returned an error
	FailEnvironment = "environment" // any other error of the environment or of scoring
	FailDeadline    = "deadline"    // the episode's own deadline passed
	FailPanic       = "panic"       // the environment or the policy panicked
)

// Task is one episode to be played.
type Task struct {
	// ID names the trajectory and, with the run's seed, fixes its draws: it must
	// be unique in a run, and a retry keeps it.
	ID    string
	Group string
	Role  Role
	Step  int
	// Env makes a fresh world; it is called once an attempt.
	Env func() (Env, error)
	// Score sets Reward, Outcome and Detail of an episode that has ended; metrics count
	// the solver's outcome "solved" as its solve rate. env is already closed: what
	// scoring needs it must have kept. Optional. An error that wraps
	// sandbox.ErrInfrastructure repeats the scoring, not the episode.
	Score func(ctx context.Context, env Env, t *Trajectory) error
}

// Runner plays tasks side by side. It bounds how many are in flight over all
// concurrent calls of Run, gives each a deadline, repeats what infrastructure
// broke, and delivers each task exactly once.
type Runner struct {
	Player Player
	// Deadline of one attempt with its scoring (default 1 h).
	Deadline time.Duration
	// Retries is how often infrastructure failures are repeated (default 0).
	Retries int
	// Backoff is the wait before the first retry (default 200 ms); it doubles each time,
	// up to a minute.
	Backoff time.Duration

	slots chan struct{}
	live  sync.Map // ids in flight
}

// NewRunner returns a runner that keeps at most inFlight episodes going.
func NewRunner(p Player, inFlight int) *Runner {
	return &Runner{Player: p, slots: make(chan struct{}, max(1, inFlight))}
}

// Run plays tasks and calls sink once for each, from the calling goroutine, in
// the order in which they end. A task that had no turn before ctx ended is
// delivered as Cancelled. Run returns when every task has been delivered; its
// error is the cause of ctx's end, else nil.
func (r *Runner) Run(ctx context.Context, tasks []Task, sink func(*Trajectory)) error {
	done := make(chan *Trajectory)
	for _, task := range tasks {
		go func() { done <- r.one(ctx, task) }()
	}
	for range tasks {
		sink(<-done)
	}
	return context.Cause(ctx)
}

// one waits for a slot and plays one task to its delivery.
func (r *Runner) one(ctx context.Context, task Task) *Trajectory {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return newTrajectory(task, Cancelled)
	}
	if _, twice := r.live.LoadOrStore(task.ID, true); twice {
		t := newTrajectory(task, Failed)
		t.Failure = fmt.Sprintf("%s: an episode with id %s is already in flight", FailEnvironment, task.ID)
		return t
	}
	defer r.live.Delete(task.ID)

	deadline := r.Deadline
	if deadline <= 0 {
		deadline = time.Hour
	}
	for try := 0; ; try++ {
		t, err := r.attempt(ctx, task, deadline)
		switch {
		case err == nil:
			t.Status = Scored
			return t
		case ctx.Err() != nil:
			t.Status = Cancelled
			return t
		}
		t.Status, t.Failure = Failed, failure(err)
		if try >= r.Retries || !retriable(err) {
			return t
		}
		if !sleep(ctx, r.backoff(try)) {
			t.Status = Cancelled
			return t
		}
	}
}

// maxBackoff bounds the wait between two tries.
const maxBackoff = time.Minute

// backoff is the wait after a try, the first of which is 0.
func (r *Runner) backoff(try int) time.Duration {
	wait := r.Backoff
	if wait <= 0 {
		wait = 200 * time.Millisecond
	}
	for ; try > 0 && wait < maxBackoff; try-- {
		wait *= 2
	}
	return min(wait, maxBackoff)
}

// errDeadline is the cause of an attempt's context when its own deadline passed.
var errDeadline = errors.New("episode deadline passed")

// attempt plays and scores one task once. The trajectory is never nil.
func (r *Runner) attempt(ctx context.Context, task Task, deadline time.Duration) (t *Trajectory, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, deadline, errDeadline)
	defer cancel()
	t = newTrajectory(task, Cancelled)
	defer func() {
		if v := recover(); v != nil {
			err = &stageError{FailPanic, fmt.Errorf("%v\n%s", v, debug.Stack())}
		} else if err != nil && errors.Is(context.Cause(ctx), errDeadline) {
			err = &stageError{FailDeadline, fmt.Errorf("%s after %v: %w", errDeadline, deadline, err)}
		}
	}()

	env, err := r.play(ctx, task, t)
	if err != nil || task.Score == nil {
		return t, err
	}
	for try := 0; ; try++ {
		err = task.Score(ctx, env, t)
		if err == nil {
			return t, nil
		}
		err = &stageError{FailEnvironment, fmt.Errorf("score episode %s: %w", task.ID, err)}
		if try >= r.Retries || !errors.Is(err, sandbox.ErrInfrastructure) || !sleep(ctx, r.backoff(try)) {
			return t, &scoringError{err}
		}
	}
}

// scoringError marks a failure after the episode, which playing again would not mend.
type scoringError struct{ error }

func (e *scoringError) Unwrap() error { return e.error }

func (r *Runner) play(ctx context.Context, task Task, t *Trajectory) (env Env, err error) {
	env, err = task.Env()
	if err != nil {
		return nil, &stageError{FailEnvironment, fmt.Errorf("make episode %s: %w", task.ID, err)}
	}
	defer func() {
		if rel, ok := r.Player.Policy.(Releaser); ok {
			rel.Release(task.ID)
		}
		if cerr := env.Close(); cerr != nil && err == nil {
			err = &stageError{FailEnvironment, fmt.Errorf("close episode %s: %w", task.ID, cerr)}
		}
	}()
	return env, r.Player.Play(ctx, env, t)
}

func newTrajectory(task Task, s Status) *Trajectory {
	return &Trajectory{ID: task.ID, Group: task.Group, Role: task.Role, Step: task.Step, Status: s}
}

// retriable: a lost sandbox may come back; a deadline, a panic, a broken
// environment or a broken policy would fail again.
func retriable(err error) bool {
	var scoring *scoringError
	return errors.Is(err, sandbox.ErrInfrastructure) && !errors.As(err, &scoring) && kind(err) == FailSandbox
}

func kind(err error) string {
	var s *stageError
	if !errors.As(err, &s) {
		return FailEnvironment
	}
	if s.kind == FailEnvironment && errors.Is(err, sandbox.ErrInfrastructure) {
		return FailSandbox
	}
	return s.kind
}

func failure(err error) string {
	var s *stageError
	if errors.As(err, &s) {
		return kind(err) + ": " + s.err.Error()
	}
	return kind(err) + ": " + err.Error()
}

// FailureKind is the first word of Failure: one of the Fail constants, "" when
// there was no failure.
func (t *Trajectory) FailureKind() string {
	k, _, _ := strings.Cut(t.Failure, ":")
	return k
}

// sleep waits d and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
