//go:build linux

package local

import (
	"os"
	"runtime"
	"sync"
)

// spawner starts processes from one OS thread that lives as long as the
// backend. A parent-death signal fires when the creating thread ends, not the
// process (golang/go#27505), so a sandbox must not be started from a thread
// that the Go runtime may retire.
type spawner struct {
	requests chan spawn
	done     chan struct{}
	stop     sync.Once
}

type spawn struct {
	argv  []string
	attr  *os.ProcAttr
	group *group
	reply chan<- spawned
}

type spawned struct {
	proc *os.Process
	err  error
}

func newSpawner() *spawner {
	s := &spawner{requests: make(chan spawn), done: make(chan struct{})}
	go s.loop()
	return s
}

func (s *spawner) loop() {
	runtime.LockOSThread() // and never unlocked: the thread ends with the loop
	for {
		select {
		case r := <-s.requests:
			r.reply <- r.run()
		case <-s.done:
			return
		}
	}
}

func (r spawn) run() spawned {
	folder, err := r.group.folder()
	if err != nil {
		return spawned{nil, err}
	}
	if folder != nil {
		defer folder.Close()
		r.attr.Sys.UseCgroupFD, r.attr.Sys.CgroupFD = true, int(folder.Fd())
	}
	leave, err := r.group.enter()
	if err != nil {
		return spawned{nil, err}
	}
	defer leave()
	p, err := os.StartProcess(r.argv[0], r.argv, r.attr)
	return spawned{p, err}
}

// start runs argv[0], a path, in a control group, which may be nil. The program
// asks for its parent-death signal itself.
func (s *spawner) start(argv []string, attr *os.ProcAttr, g *group) (*os.Process, error) {
	reply := make(chan spawned, 1)
	select {
	case s.requests <- spawn{argv, attr, g, reply}:
		r := <-reply
		return r.proc, r.err
	case <-s.done:
		return nil, os.ErrClosed
	}
}

// close ends the thread; processes that it started and that live die with it.
func (s *spawner) close() { s.stop.Do(func() { close(s.done) }) }
