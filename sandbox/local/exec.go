//go:build linux

package local

import (
	"context"
	"io"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// Exec implements sandbox.Sandbox.
func (x *box) Exec(ctx context.Context, cmd sandbox.Cmd) (sandbox.Result, error) {
	end, err := x.begin(ctx)
	if err != nil {
		return sandbox.Result{}, err
	}
	defer end()
	timeout := cmd.Timeout
	if timeout <= 0 {
		timeout = x.limits.Command
	}
	timeout = min(timeout, time.Until(x.expires))
	if timeout <= 0 {
		return sandbox.Result{Exit: -1, Signal: int(syscall.SIGKILL), TimedOut: true}, nil
	}
	begin := time.Now()
	argv := x.backend.bwrapArgs(x.slot)
	for k, v := range x.env {
		if _, over := cmd.Env[k]; !over {
			argv = append(argv, "--setenv", k, v)
		}
	}
	for k, v := range cmd.Env {
		argv = append(argv, "--setenv", k, v)
	}
	argv = append(argv, "--chdir", path.Join(sandbox.Workdir, cmd.Dir), "--")
	argv = append(argv, cmd.Args...)

	var ours, theirs []*os.File
	defer func() {
		for _, f := range append(ours, theirs...) {
			f.Close()
		}
	}()
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return sandbox.Result{}, infra("exec", err)
	}
	var feed *os.File
	if cmd.Stdin != nil {
		stdin.Close()
		if stdin, feed, err = os.Pipe(); err != nil {
			return sandbox.Result{}, infra("exec", err)
		}
		ours = append(ours, feed)
	}
	theirs = append(theirs, stdin)
	outR, outW, err := os.Pipe()
	if err != nil {
		return sandbox.Result{}, infra("exec", err)
	}
	ours, theirs = append(ours, outR), append(theirs, outW)
	errR, errW, err := os.Pipe()
	if err != nil {
		return sandbox.Result{}, infra("exec", err)
	}
	ours, theirs = append(ours, errR), append(theirs, errW)

	if x.backend.root {
		// Or opening /dev/stdout, which opens the pipe anew, would be denied.
		uid, gid := x.uid()
		for _, f := range theirs {
			if f != stdin || feed != nil {
				f.Chown(uid, gid)
			}
		}
	}
	attr := &os.ProcAttr{Dir: "/", Env: []string{}, Files: []*os.File{stdin, outW, errW}, Sys: x.backend.sysProcAttr(x)}
	proc, err := x.backend.spawn.start(argv, attr)
	if err != nil {
		return sandbox.Result{}, infra("start bubblewrap", err)
	}
	for _, f := range theirs {
		f.Close()
	}
	theirs = nil
	if feed != nil {
		go func() { io.Copy(feed, cmd.Stdin); feed.Close() }()
	}

	var res sandbox.Result
	over := make(chan struct{})
	out := &collector{left: x.limits.Output, over: over}
	var readers sync.WaitGroup
	readers.Go(func() { res.Stdout = out.collect(outR) })
	readers.Go(func() { res.Stderr = out.collect(errR) })
	exited := make(chan *os.ProcessState, 1)
	go func() { st, _ := proc.Wait(); exited <- st }()

	timer := time.NewTimer(timeout)
	defer timer.Stop()
	var state *os.ProcessState
	var failure error
	select {
	case state = <-exited:
	case <-timer.C:
		res.TimedOut = true
	case <-over:
	case <-ctx.Done():
		failure = ctx.Err()
	case <-x.done:
		failure = sandbox.ErrClosed
	}
	if state == nil {
		proc.Kill()
		state = <-exited
	}
	readers.Wait()
	res.Truncated = out.exceeded()
	res.Wall = time.Since(begin)
	if failure != nil {
		return sandbox.Result{}, failure
	}
	ws := state.Sys().(syscall.WaitStatus)
	res.Exit = ws.ExitStatus()
	if ws.Signaled() {
		res.Exit, res.Signal = -1, int(ws.Signal())
	} else if res.Exit > 128 && res.Exit <= 128+64 {
		// bubblewrap reports a signal as a shell does.
		res.Signal, res.Exit = res.Exit-128, -1
	}
	return res, nil
}

// sysProcAttr makes a process that is unprivileged and dies with the trainer.
func (b *Backend) sysProcAttr(x *box) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if b.root {
		uid, gid := x.uid()
		a.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{}}
	}
	return a
}

// collector keeps the head of what the streams of one command print.
type collector struct {
	mu   sync.Mutex
	left int64
	full bool
	over chan struct{} // closed when more was printed than fits
}

// collect reads a stream to its end and returns its share of the head.
func (c *collector) collect(r io.Reader) []byte {
	var kept []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			kept = append(kept, buf[:c.take(n)]...)
		}
		if err != nil {
			return kept
		}
	}
}

func (c *collector) take(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := int(min(int64(n), c.left))
	c.left -= int64(k)
	if k < n && !c.full {
		c.full = true
		close(c.over)
	}
	return k
}

func (c *collector) exceeded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.full
}
