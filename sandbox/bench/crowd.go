//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// This file measures many at once: sandboxes, and processes in one.

// many starts n sandboxes that have run a command, some at once.
func (x *run) many(b sandbox.Backend, n, atOnce int) ([]sandbox.Sandbox, error) {
	boxes := make([]sandbox.Sandbox, n)
	errs := make([]error, n)
	turn := make(chan struct{}, atOnce)
	var work sync.WaitGroup
	for i := range n {
		work.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			s, err := x.start(b, x.small)
			if err == nil {
				boxes[i] = s
				err = x.must(s, "true")
			}
			errs[i] = err
		})
	}
	work.Wait()
	return boxes, errors.Join(errs...)
}

func closeAll(boxes []sandbox.Sandbox) {
	for _, s := range boxes {
		if s != nil {
			s.Close()
		}
	}
}

func (x *run) alive(s side) error {
	before, err := availableMiB()
	if err != nil {
		return err
	}
	boxes, err := x.many(s.b, x.o.Alive, 2*x.o.Workers)
	defer closeAll(boxes)
	if err != nil {
		return err
	}
	after, err := availableMiB()
	s.to.AliveMiB = (before - after) / float64(x.o.Alive)
	return err
}

func availableMiB() (float64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("/proc/meminfo does not tell MemAvailable")
}

func (x *run) burst(s side) error {
	begin := time.Now()
	boxes, err := x.many(s.b, x.o.Burst, x.o.Burst)
	took := time.Since(begin)
	closeAll(boxes)
	if err == nil {
		s.to.BurstSeconds = took.Seconds()
	}
	return err
}

// hostileTree is a tree of $0 processes that ignore signals; when it prints, and its cat reads, it is up.
const hostileTree = `trap "" TERM HUP INT; for ((i = 1; i < $0; i++)); do (trap "" TERM HUP INT; exec setsid sleep 1000) & done; printf u; exec cat`

func (x *run) death(of side) error {
	s, err := of.b.Start(x.ctx, sandbox.Spec{Dir: x.small, Frozen: true, Owner: "ssr-sandbox-bench", Limits: sandbox.Limits{Processes: 2 * x.o.Hostile}})
	if err != nil {
		return err
	}
	defer s.Close()
	of.to.Death, err = x.rounds(max(1, x.o.Rounds/20), func(int) (time.Duration, error) {
		ctx, cancel := context.WithCancel(x.ctx)
		defer cancel()
		ended, up := make(chan error, 1), make(chan struct{})
		in, tree := io.Pipe()
		defer in.Close()
		go func() {
			_, err := s.Exec(ctx, sandbox.Cmd{Args: []string{"bash", "-c", hostileTree, strconv.Itoa(x.o.Hostile)}, Stdin: in})
			ended <- err
		}()
		go func() {
			defer close(up)
			tree.Write(make([]byte, 1<<20)) // more than is read ahead: the tree is up and reads
		}()
		select {
		case err := <-ended:
			return 0, fmt.Errorf("the tree ended by itself: %w", err)
		case <-up:
		}
		begin := time.Now()
		cancel()
		in.Close() // it is not the tree that a blocked reader would be waited for
		err := <-ended
		took := time.Since(begin)
		if !errors.Is(err, context.Canceled) {
			return 0, fmt.Errorf("the tree was not cancelled: %w", err)
		}
		return took, x.must(s, "true")
	})
	return err
}
