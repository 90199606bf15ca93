//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox/pid1"
)

// A cell is what one launcher makes: a set of namespaces with our first process in
// it (sandbox/pid1), which runs commands one after the other. Killing that process
// kills everything in the cell; the workspace stays, and the next command gets
// a new cell.
type cell struct {
	launcher *os.Process
	pid1     *os.Process
	conn     *net.UnixConn
	exited   chan struct{} // closed when the launcher has been reaped
	once     sync.Once
}

// startTimeout bounds how long a launcher may take to set up a cell.
const startTimeout = 20 * time.Second

// newCell starts a cell for a sandbox.
func (b *Backend) newCell(ctx context.Context, x *box) (*cell, error) {
	select {
	case b.starting <- struct{}{}:
		defer func() { <-b.starting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, infra("socket pair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "channel"), os.NewFile(uintptr(pair[1]), "channel")
	defer theirs.Close()
	// The kernel then tells the host's pid of whoever writes.
	err = unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	var conn net.Conn
	if err == nil {
		conn, err = net.FileConn(ours)
	}
	ours.Close()
	if err != nil {
		return nil, infra("socket pair", err)
	}
	c := &cell{conn: conn.(*net.UnixConn), exited: make(chan struct{})}
	if err := c.start(ctx, x, theirs); err != nil {
		c.conn.Close()
		return nil, err
	}
	// The host's memory killer should choose a sandbox before anything else. It
	// is a preference: a host may refuse it.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.pid1.Pid), []byte("500"), 0)
	return c, nil
}

func (c *cell) start(ctx context.Context, x *box, theirs *os.File) error {
	b := x.backend
	what := b.launching()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return infra(what, err)
	}
	defer null.Close()
	complaints, err := memoryFile("stderr", nil)
	if err != nil {
		return infra(what, err)
	}
	defer complaints.Close()
	program, err := memoryFile("seccomp", b.filter)
	if err != nil {
		return infra(what, err)
	}
	defer program.Close()

	// No parent-death signal yet: it would kill a bubblewrap while its child waits
	// to be let go, for ever. Either launcher asks for the signal itself; when the
	// trainer has died by then, the first process finds its channel closed.
	namespace := -1
	if x.layer != nil {
		namespace = x.layer.namespace
	}
	c.launcher, err = b.spawn.start(b.command(x.slot), &os.ProcAttr{
		Dir: "/", Env: []string{},
		Files: []*os.File{null, null, complaints, theirs, program},
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: x.credential()},
	}, x.group, namespace)
	if err != nil {
		return infra(what, err)
	}
	theirs.Close() // so that the read below ends when the launcher does
	go func() {
		awaitEnd(c.launcher.Pid)
		c.launcher.Wait()
		close(c.exited)
	}()
	pid, err := c.hello(ctx)
	if err == nil {
		// A handle, not a number: it cannot come to mean another process.
		c.pid1, err = os.FindProcess(pid)
	}
	if err == nil {
		return nil
	}
	c.launcher.Kill()
	<-c.exited
	if ctx.Err() != nil {
		return ctx.Err()
	}
	text := make([]byte, 2000)
	n, _ := complaints.ReadAt(text, 0)
	if said := strings.TrimSpace(string(text[:n])); said != "" {
		err = explain(said)
	}
	return infra(what, err)
}

// awaitEnd waits for a child's end as far as that needs no thread, which
// os.Process.Wait keeps as long as the child lives. It may return early.
func awaitEnd(pid int) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "process")
	defer f.Close()
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n != 0 || err != nil
		})
	}
}

// hello waits for the first process and returns its pid on the host.
func (c *cell) hello(ctx context.Context) (int, error) {
	c.conn.SetReadDeadline(time.Now().Add(startTimeout))
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf, oob := make([]byte, 16), make([]byte, 128)
	n, oobn, _, _, err := c.conn.ReadMsgUnix(buf, oob)
	if err == nil && n == 0 {
		err = errors.New("it ended before the sandbox was ready")
	}
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil && cred.Pid > 0 {
			if !stop() {
				return 0, ctx.Err()
			}
			return int(cred.Pid), c.conn.SetReadDeadline(time.Time{})
		}
	}
	return 0, errors.New("the first process did not identify itself")
}

// Kill implements Cell.
func (c *cell) Kill() {
	c.once.Do(func() {
		if c.pid1 != nil {
			// When the first process of a pid namespace has been reaped, all others have been.
			c.pid1.Kill()
			select {
			case <-c.exited:
			case <-time.After(5 * time.Second):
			}
			c.pid1.Release()
		}
		c.launcher.Kill()
		<-c.exited
		c.conn.Close()
	})
}

// Send implements Cell.
func (c *cell) Send(r pid1.Request, fds [3]int) error {
	m, err := memoryFile("request", r.Encode())
	if err != nil {
		return err
	}
	defer m.Close()
	rights := unix.UnixRights(int(m.Fd()), fds[0], fds[1], fds[2])
	_, _, err = c.conn.WriteMsgUnix([]byte{'x'}, rights, nil)
	return err
}

// Receive implements Cell.
func (c *cell) Receive() (pid1.Reply, error) {
	buf := make([]byte, 64)
	n, _, _, _, err := c.conn.ReadMsgUnix(buf, nil)
	if err != nil {
		return pid1.Reply{}, err
	}
	return pid1.DecodeReply(buf[:n])
}

// Interrupt implements Cell: nothing reaches the first process while a command runs.
func (c *cell) Interrupt() bool { return false }

// Exited implements Cell.
func (c *cell) Exited() <-chan struct{} { return c.exited }

// PID implements Cell.
func (c *cell) PID() int { return c.pid1.Pid }

// Why implements Cell: only what runs inside ends a cell early.
func (c *cell) Why() (outOfMemory bool, err error) { return false, nil }

// memoryFile makes an anonymous file with the given content, at its start.
func memoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(content, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
