//go:build linux

package docker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/local"
	"github.com/ssr-go/ssr/sandbox/pid1"
)

// cell implements local.Cell: a container whose first process serves a stream.
type cell struct {
	engine *engine
	client *client
	id     string
	conn   *hijacked
	stream *pid1.Stream
	pid    int
	held   int // a descriptor of that process, -1 where it is none of this machine's

	files  [3]*os.File   // of the command that runs
	ended  chan struct{} // closed at its end
	exited chan struct{}
	once   sync.Once
}

const (
	// startTimeout bounds how long a started container may take to say that it is ready.
	startTimeout = 20 * time.Second
	// interruptTimeout bounds how long the first process may take to end a command.
	interruptTimeout = 3 * time.Second
)

// NewCell implements local.Engine.
func (e *engine) NewCell(ctx context.Context, spec local.CellSpec) (local.Cell, error) {
	select {
	case e.busy <- struct{}{}:
		defer func() { <-e.busy }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := e.newCell(ctx, spec)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("%w: start a container of %s: %w", sandbox.ErrInfrastructure, e.opts.Image, err)
	}
	return c, nil
}

func (e *engine) newCell(ctx context.Context, spec local.CellSpec) (*cell, error) {
	client, err := e.connect(ctx)
	if err != nil {
		return nil, err
	}
	config, err := e.create(spec, client)
	if err != nil {
		return nil, err
	}
	var made struct {
		ID string `json:"Id"`
	}
	if err := client.call(ctx, http.MethodPost, "/containers/create", nil, config, &made); err != nil {
		if hasStatus(err, http.StatusNotFound) {
			return nil, fmt.Errorf("%w: get it first (docker pull %s): %w", ErrNoImage, e.opts.Image, err)
		}
		return nil, err
	}
	c := &cell{engine: e, client: client, id: made.ID, held: -1, exited: make(chan struct{})}
	if err := c.start(ctx, e, spec, config.HostConfig); err != nil {
		if c.conn != nil && len(c.conn.stderr) > 0 {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(c.conn.stderr)))
		}
		// No command has run in it. An engine finishes a start before it removes,
		// which whoever has given up does not wait for.
		e.removals.Go(c.Kill)
		if ctx.Err() == nil {
			<-c.exited
		}
		return nil, err
	}
	return c, nil
}

func (c *cell) start(ctx context.Context, e *engine, spec local.CellSpec, want hostConfig) error {
	// Attached first, so that no word of the first process is missed.
	conn, err := c.client.attach(ctx, c.id)
	if err != nil {
		return err
	}
	c.conn = conn
	if err := c.client.call(ctx, http.MethodPost, "/containers/"+c.id+"/start", nil, nil, nil); err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(startTimeout))
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	c.stream, err = pid1.NewStream(conn, conn, spec.Limits.Lifetime+grace, spec.Filter)
	if !stop() {
		return c.client.explain(ctx, ctx.Err())
	}
	conn.SetDeadline(time.Time{})
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%w: the container was not ready after %v", ErrHung, startTimeout)
		}
		return fmt.Errorf("%w before it was ready: %w", ErrLost, err)
	}
	state, err := c.inspect(ctx)
	if err != nil {
		return err
	}
	if err := granted(state.HostConfig, want, e.opts.Allow); err != nil {
		return err
	}
	if gvisor(e.opts.Runtime) {
		return nil
	}
	if state.State.Pid <= 0 {
		return fmt.Errorf("%w: the engine does not tell its first process", ErrLost)
	}
	c.pid = state.State.Pid
	if c.held, err = unix.PidfdOpen(c.pid, 0); err != nil {
		c.held = -1
		return fmt.Errorf("%w: its first process: %w", ErrLost, err)
	}
	if !slices.Contains(e.opts.Allow, "filesystem") {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.pid))
		if err == nil {
			err = checkMounts(string(table))
		}
		if err != nil {
			return fmt.Errorf("a container without protection %q: %w", "filesystem", err)
		}
	}
	return nil
}

// granted compares what was asked for with what the engine says it has set up:
// it drops limits that its host lacks with no more than a warning.
func granted(got, want hostConfig, allow []string) error {
	for _, p := range []struct {
		protection string
		ok         bool
		found      any
	}{
		{"network", got.NetworkMode == want.NetworkMode, got.NetworkMode},
		{"filesystem", got.ReadonlyRootfs && !got.Privileged, "a root folder that can be written"},
		{"memory", got.Memory == want.Memory, got.Memory},
		{"processes", got.PidsLimit == want.PidsLimit, got.PidsLimit},
		{"runtime", want.Runtime == "" || got.Runtime == want.Runtime, got.Runtime},
	} {
		if !p.ok && !slices.Contains(allow, p.protection) {
			return fmt.Errorf("a container without protection %q: the engine has set %v", p.protection, p.found)
		}
	}
	return nil
}

// inspection is the part of an inspect answer that is used.
type inspection struct {
	State struct {
		Running, OOMKilled bool
		Pid, ExitCode      int
	}
	HostConfig hostConfig
}

func (c *cell) inspect(ctx context.Context) (inspection, error) {
	var x inspection
	err := c.client.call(ctx, http.MethodGet, "/containers/"+c.id+"/json", nil, nil, &x)
	if hasStatus(err, http.StatusNotFound) {
		err = fmt.Errorf("%w: somebody has removed it", ErrLost)
	}
	return x, err
}

// Send implements local.Cell.
func (c *cell) Send(r pid1.Request, fds [3]int) error {
	for i, fd := range fds {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			c.closeFiles()
			return err
		}
		// Non-blocking, so that a read of the input ends when the file is closed.
		_ = unix.SetNonblock(own, true)
		c.files[i] = os.NewFile(uintptr(own), "stream")
	}
	if err := c.stream.Start(r); err != nil {
		c.closeFiles()
		return err
	}
	c.ended = make(chan struct{})
	return nil
}

func (c *cell) closeFiles() {
	for i, f := range c.files {
		if f != nil {
			f.Close()
			c.files[i] = nil
		}
	}
}

// Receive implements local.Cell.
func (c *cell) Receive() (pid1.Reply, error) {
	r, err := c.stream.Follow(c.files[0], c.files[1], c.files[2])
	close(c.ended)
	c.closeFiles()
	return r, err
}

// Interrupt implements local.Cell.
func (c *cell) Interrupt() bool {
	if c.stream.Kill() != nil {
		return false
	}
	go func(ended <-chan struct{}) {
		select {
		case <-ended:
		case <-time.After(interruptTimeout):
			c.Kill()
		}
	}(c.ended)
	return true
}

// Kill implements local.Cell.
func (c *cell) Kill() {
	c.once.Do(func() {
		defer close(c.exited)
		if c.conn != nil {
			c.conn.Close()
		}
		remove := func() {
			ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
			defer cancel()
			// A container that is left has no input any more, and so no process. Sweep
			// removes it.
			_ = c.client.remove(ctx, c.id)
		}
		if c.killFirst() {
			c.engine.later(remove)
		} else {
			remove()
		}
	})
}

// killFirst kills the first process where we may, whether or not the engine answers,
// and reports whether it is dead, and with it all of its pid namespace.
func (c *cell) killFirst() bool {
	if c.held < 0 {
		return false
	}
	defer unix.Close(c.held)
	if err := unix.PidfdSendSignal(c.held, unix.SIGKILL, nil, 0); err != nil {
		return err == unix.ESRCH
	}
	end := time.Now().Add(interruptTimeout)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.held), Events: unix.POLLIN}}, max(0, int(time.Until(end).Milliseconds())))
		if err != unix.EINTR || time.Now().After(end) {
			return n > 0
		}
	}
}

// Exited implements local.Cell.
func (c *cell) Exited() <-chan struct{} { return c.exited }

// PID implements local.Cell.
func (c *cell) PID() int { return c.pid }

// Why implements local.Cell.
func (c *cell) Why() (outOfMemory bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	x, err := c.inspect(ctx)
	switch {
	case err != nil:
		return false, err
	case x.State.OOMKilled:
		return true, nil
	case x.State.Running:
		return false, fmt.Errorf("%w: its stream has ended", ErrNoDaemon)
	case gvisor(c.engine.opts.Runtime) && x.State.ExitCode == 128+int(unix.SIGKILL):
		return false, nil // killed from inside, or for memory, of which it does not tell
	}
	return false, fmt.Errorf("%w: it ended with status %d", ErrLost, x.State.ExitCode)
}
