//go:build linux

package local

import (
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// thread runs functions, one after the other, on an OS thread of its own that
// lives until it is closed and whose mount namespace may differ from the other
// threads'.
type thread struct {
	work chan func()
	done chan struct{}
	stop sync.Once
}

func newThread() *thread {
	t := &thread{work: make(chan func()), done: make(chan struct{})}
	go t.loop()
	return t
}

func (t *thread) loop() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The first thread is what /proc/self means to all others. While we hold it,
		// the loop begins on another.
		begun := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(begun)
			t.serve()
		}()
		<-begun
		runtime.UnlockOSThread()
		return
	}
	t.serve()
}

// serve runs on a locked thread, which ends with it.
func (t *thread) serve() {
	// A mount namespace is changed only by a thread whose folders are its own.
	_ = unix.Unshare(unix.CLONE_FS)
	for {
		select {
		case f := <-t.work:
			f()
		case <-t.done:
			return
		}
	}
}

// do runs f and returns its error.
func (t *thread) do(f func() error) error {
	var err error
	ran := make(chan struct{})
	select {
	case t.work <- func() { err = f(); close(ran) }:
		<-ran
		return err
	case <-t.done:
		return os.ErrClosed
	}
}

func (t *thread) close() { t.stop.Do(func() { close(t.done) }) }

// spawner starts processes from one thread. A parent-death signal fires when
// the creating thread ends, not the process (golang/go#27505), so a sandbox must
// not be started from a thread that the Go runtime may retire; with the
// spawner's, its processes die.
type spawner struct {
	*thread
	home int // the thread's own mount namespace, -1 where it never leaves it
}

// start runs argv[0], a path, in a control group, which may be nil, and in a
// mount namespace, unless that is -1. The program asks for its parent-death
// signal itself.
func (s spawner) start(argv []string, attr *os.ProcAttr, g *group, namespace int) (p *os.Process, err error) {
	err = s.do(func() error {
		folder, err := g.folder()
		if err != nil {
			return err
		}
		if folder != nil {
			defer folder.Close()
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(folder.Fd())
		}
		leave, err := g.enter()
		if err != nil {
			return err
		}
		defer leave()
		if s.home >= 0 {
			// Whatever the last start left behind, this one begins where it should.
			if namespace < 0 {
				namespace = s.home
			}
			if err := unix.Setns(namespace, unix.CLONE_NEWNS); err != nil {
				return os.NewSyscallError("setns", err)
			}
			defer unix.Setns(s.home, unix.CLONE_NEWNS)
		}
		p, err = os.StartProcess(argv[0], argv, attr)
		return err
	})
	return p, err
}
