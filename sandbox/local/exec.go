//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/pid1"
)

// Exec implements sandbox.Sandbox.
func (x *box) Exec(ctx context.Context, cmd sandbox.Cmd) (sandbox.Result, error) {
	end, err := x.begin(ctx)
	if err != nil {
		return sandbox.Result{}, err
	}
	defer end()
	folder := path.Join(sandbox.Workdir, cmd.Dir)
	env := environ(x.env, cmd.Env)
	if err := checkCommand(cmd, folder, env); err != nil {
		return sandbox.Result{}, err
	}
	timeout := cmd.Timeout
	if timeout <= 0 {
		timeout = x.limits.Command
	}
	if time.Now().After(x.expires) {
		return sandbox.Result{Exit: -1, Signal: int(syscall.SIGKILL), TimedOut: true}, nil
	}
	kills := x.group.kills()
	notBegun := func(err error) (sandbox.Result, error) {
		if x.group.kills() > kills {
			// Its files leave no memory to start anything: its own doing.
			return sandbox.Result{Exit: -1, Signal: int(syscall.SIGKILL), OutOfMemory: true}, nil
		}
		return sandbox.Result{}, err
	}
	// The time that a cell takes to be made is not the command's.
	if err := x.ensureCell(ctx); err != nil {
		return notBegun(err)
	}
	begin := time.Now()
	timeout = min(timeout, x.expires.Sub(begin))
	p, err := newPipes(x, cmd.Stdin)
	if err != nil {
		return sandbox.Result{}, infra("exec", err)
	}
	defer p.close()
	if err := x.send(ctx, folder, cmd.Args, env, p); err != nil {
		return notBegun(err)
	}
	p.run(cmd.Stdin, x.limits.Output)
	res, err := x.wait(ctx, p, begin.Add(timeout))
	res.Wall = time.Since(begin)
	return res, err
}

// checkCommand refuses what cannot be passed to a program.
func checkCommand(cmd sandbox.Cmd, folder string, env []string) error {
	if len(cmd.Args) == 0 || cmd.Args[0] == "" {
		return errors.New("exec: no command")
	}
	for _, s := range slices.Concat([]string{folder}, cmd.Args, env) {
		if strings.IndexByte(s, 0) >= 0 {
			return errors.New("exec: a NUL byte in the command, its folder or its environment")
		}
	}
	return nil
}

// environ lays one environment over another, in a fixed order.
func environ(base, over map[string]string) []string {
	env := make([]string, 0, len(base)+len(over))
	for k, v := range base {
		if _, replaced := over[k]; !replaced {
			env = append(env, k+"="+v)
		}
	}
	for k, v := range over {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env
}

// send starts a command, in a new cell when there is none or it has died idle.
func (x *box) send(ctx context.Context, folder string, args, env []string, p *pipes) error {
	for attempt := 0; ; attempt++ {
		if err := x.ensureCell(ctx); err != nil {
			return err
		}
		err := x.cell.Send(pid1.Request{Folder: folder, Args: args, Env: env, Limits: x.rlimits()}, p.theirs)
		if err == nil {
			p.closeTheirs()
			return nil
		}
		x.dropCell()
		if attempt > 0 {
			return infra("exec", err)
		}
	}
}

// overhead is what a cell takes of its control group beside the command:
// the launcher, the first process and, while it starts, the trainer's thread.
const overhead = 3

func (x *box) ensureCell(ctx context.Context) error {
	if x.cell != nil {
		select {
		case <-x.cell.Exited():
			_, err := x.cell.Why()
			x.dropCell()
			if err != nil {
				return infra("the sandbox was lost", err)
			}
		default:
			return nil
		}
	}
	if x.group == nil && len(x.backend.groups.parent) > 0 {
		g, err := x.backend.groups.create(x.slot.number, x.limits.Memory, x.limits.Processes+overhead)
		if err != nil {
			return infra("limit the sandbox", err)
		}
		x.group = g
	}
	c, err := x.newCell(ctx)
	if err != nil {
		return err
	}
	if pid := c.PID(); pid > 0 {
		if err := x.backend.verify(pid, x.backend.opts.Engine == nil); err != nil {
			select {
			case <-c.Exited(): // what has ended is confined by nothing
				err = errors.New("it ended as it began")
			case <-time.After(time.Second):
			}
			c.Kill()
			return infra(x.backend.launching(), err)
		}
		if x.backend.opts.Engine != nil {
			x.group = groupOf(pid)
		}
	}
	x.cell = c
	return nil
}

func (x *box) newCell(ctx context.Context) (Cell, error) {
	b := x.backend
	if b.opts.Engine == nil {
		return b.newCell(ctx, x)
	}
	uid, gid := x.uid()
	spec := CellSpec{
		State: b.opts.StateDir, Slot: x.slot.number, Dir: x.slot.dir, Workspace: x.slot.workspace(), Tmp: x.slot.tmp(),
		ReadOnly: b.opts.ReadOnly, UID: uid, GID: gid, Limits: x.limits, Owner: x.spec.Owner,
	}
	if b.filtered() {
		spec.Filter = b.filter
	}
	return b.opts.Engine.NewCell(ctx, spec)
}

func (x *box) dropCell() {
	if x.cell != nil {
		x.cell.Kill()
		x.cell = nil
	}
}

// rlimits bound each process of a command, beside what control groups bound together.
func (x *box) rlimits() []pid1.Limit {
	cpu := uint64((x.limits.CPU + time.Second - 1) / time.Second)
	list := []pid1.Limit{
		{Resource: unix.RLIMIT_CORE},
		{Resource: unix.RLIMIT_CPU, Soft: cpu, Hard: cpu + 1},
		equal(unix.RLIMIT_FSIZE, x.limits.FileSize),
		equal(unix.RLIMIT_NOFILE, int64(x.limits.OpenFiles)),
		equal(unix.RLIMIT_NPROC, int64(x.limits.Processes+1)),
		equal(unix.RLIMIT_MEMLOCK, 64<<10),
	}
	if x.cell.PID() > 0 { // gVisor lets nobody set these
		for _, r := range []int{unix.RLIMIT_MSGQUEUE, unix.RLIMIT_NICE, unix.RLIMIT_RTPRIO} {
			list = append(list, pid1.Limit{Resource: r})
		}
	}
	if x.group == nil || x.group.dirs["memory"] == "" {
		list = append(list, equal(unix.RLIMIT_DATA, x.limits.Memory))
	}
	return list
}

func equal(resource int, n int64) pid1.Limit {
	return pid1.Limit{Resource: resource, Soft: uint64(n), Hard: uint64(n)}
}

// wait follows a started command to its end, or ends it.
func (x *box) wait(ctx context.Context, p *pipes, deadline time.Time) (sandbox.Result, error) {
	type ended struct {
		pid1.Reply
		err error
	}
	c := x.cell
	over := make(chan ended, 1)
	go func() {
		r, err := c.Receive()
		over <- ended{r, err}
	}()
	w := x.watch()
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()

	var res sandbox.Result
	var failure error
	var last *ended
	signal := syscall.SIGKILL
	select {
	case e := <-over:
		last = &e
	case <-timer.C:
		res.TimedOut = true
	case <-p.output.over:
	case why := <-w.exceeded:
		res.DiskFull = why == overDisk
		if why == overCPU {
			signal = syscall.SIGXCPU
		}
	case <-ctx.Done():
		failure = ctx.Err()
	case <-x.done:
		failure = sandbox.ErrClosed
	}
	ours := last == nil // we end it
	if ours {
		if errors.Is(failure, sandbox.ErrClosed) || !c.Interrupt() {
			x.dropCell()
		}
		e := <-over
		last = &e
	}
	var lost error
	if last.err != nil {
		if !ours { // it has ended its own first process, or the engine failed
			res.OutOfMemory, lost = c.Why()
		}
		x.dropCell()
	}
	res.Stdout, res.Stderr = p.finish()
	usage := w.stop()
	if failure != nil {
		return sandbox.Result{}, failure
	}
	if lost != nil {
		return sandbox.Result{}, infra("the sandbox was lost", lost)
	}
	res.Truncated = p.output.exceeded()
	res.DiskFull = res.DiskFull || usage.disk
	res.OutOfMemory = res.OutOfMemory || usage.memory
	res.CPU = usage.cpu
	switch {
	case last.err != nil || ours:
		res.Exit, res.Signal = -1, int(signal)
	case last.Status.Signaled():
		res.Exit, res.Signal = -1, int(last.Status.Signal())
	default:
		res.Exit = last.Status.ExitStatus()
	}
	if res.CPU == 0 {
		res.CPU = last.User + last.System
	}
	return res, nil
}

// pipes are the streams of one command.
type pipes struct {
	theirs [3]int // -1 when closed
	ours   [3]*os.File
	output *collector
	heads  [2][]byte
	work   sync.WaitGroup
	fed    chan struct{} // closed when stdin has been written
}

func newPipes(x *box, stdin io.Reader) (*pipes, error) {
	p := &pipes{theirs: [3]int{-1, -1, -1}, fed: make(chan struct{})}
	uid, gid := x.uid()
	for i := range p.theirs {
		if i == 0 && stdin == nil {
			fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			p.theirs[0] = fd
			continue
		}
		var fd [2]int
		if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
			p.close()
			return nil, err
		}
		here, there := fd[0], fd[1]
		if i == 0 {
			here, there = there, here
		}
		p.theirs[i] = there
		// Ours alone does not block: it goes to Go's poller, theirs to a program.
		err := unix.SetNonblock(here, true)
		p.ours[i] = os.NewFile(uintptr(here), fmt.Sprint("stream ", i))
		if err == nil && x.backend.root {
			// Or opening /dev/stdout, which opens the pipe anew, would be denied.
			err = unix.Fchown(there, uid, gid)
		}
		if err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// run begins to feed and to collect; limit bounds both outputs together.
func (p *pipes) run(stdin io.Reader, limit int64) {
	p.output = &collector{left: limit, over: make(chan struct{})}
	for i := range p.heads {
		p.work.Go(func() { p.heads[i] = p.output.collect(p.ours[i+1]) })
	}
	if stdin == nil {
		close(p.fed)
		return
	}
	feed := p.ours[0]
	go func() {
		defer close(p.fed)
		io.Copy(feed, struct{ io.Reader }{stdin})
		feed.Close()
	}()
}

// readerWait is for a caller's stdin to return from a read that nobody needs any
// more. One that blocks, such as a terminal, may outlive the command by one read.
const readerWait = 50 * time.Millisecond

// finish is called when no process is left, so that the streams have ended.
func (p *pipes) finish() (stdout, stderr []byte) {
	if p.ours[0] != nil {
		p.ours[0].Close()
	}
	select {
	case <-p.fed:
	case <-time.After(readerWait):
	}
	p.work.Wait()
	return p.heads[0], p.heads[1]
}

func (p *pipes) closeTheirs() {
	for i, fd := range p.theirs {
		if fd >= 0 {
			unix.Close(fd)
			p.theirs[i] = -1
		}
	}
}

func (p *pipes) close() {
	p.closeTheirs()
	for _, f := range p.ours {
		if f != nil {
			f.Close()
		}
	}
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
