// Package c10d joins processes, on one machine or several, into a group that works on
// one step together, with libtorch's own c10d: its TCPStore to meet, and its Gloo to
// move bytes between host memories. It is kernels/collective over processes: the same
// operations, and the same sums to the last bit.
//
// No operation waits for ever. Where a member is killed, stopped, out of reach or gives
// up, every other one gets an error that names it: at once where its connections
// closed, within a second where it said so, within Options.Timeout else. Such a group
// is over.
package c10d

// #cgo CXXFLAGS: -std=c++17 -I${SRCDIR}/compat
// #cgo LDFLAGS: -ltorch_cpu -lc10
// #include "c10d.h"
// #include <stdlib.h>
import "C"

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Group is this process's membership. All members make the same calls in the same
// order, from one goroutine each. It is made by Join and must be closed.
type Group struct {
	o       Options
	store   *store
	process unsafe.Pointer // c10d's process group
	begun   atomic.Int64   // operations
	once    sync.Once      // of giving up
	over    chan struct{}  // closed when given up
	err     error          // why, set before over is closed
	watch   sync.WaitGroup
	unwatch context.CancelFunc
}

// Join meets the other processes and returns when all are there.
func Join(ctx context.Context, o Options) (*Group, error) {
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Minute
	}
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("c10d: %w", err)
	}
	g := &Group{o: o, over: make(chan struct{})}
	late := fmt.Errorf("not within %v", o.Timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, late)
	defer cancel()
	var err error
	if g.store, err = openStore(ctx, o); err != nil {
		go g.store.close()
		return nil, fmt.Errorf("c10d: rank %d of %d finds no store at %s:%d: %w", o.Rank, o.World, o.Host, o.Port, err)
	}
	err = g.meet(ctx)
	if err == nil {
		g.process, err = apart(ctx, &g.store.calls, g.open)
	}
	if err != nil {
		go g.free() // when a call that was left behind ends
		return nil, fmt.Errorf("c10d: rank %d of %d: join: %w", o.Rank, o.World, err)
	}
	watching, unwatch := context.WithCancel(context.Background())
	g.unwatch = unwatch
	g.watch.Go(func() { g.listen(watching) })
	return g, nil
}

// meet waits until all members are at the store.
func (g *Group) meet(ctx context.Context) error {
	if err := g.store.set(ctx, member("joined", g.o.Rank), "1"); err != nil {
		return g.o.lost(err)
	}
	for r := range g.o.World {
		err := g.store.await(ctx, member("joined", r))
		if err == nil {
			continue
		}
		if absent := g.absent(); ctx.Err() != nil && len(absent) > 0 {
			return fmt.Errorf("%s not come: %w", named(absent, "has", "have"), err)
		}
		return g.o.lost(err)
	}
	return nil
}

func (g *Group) open() (unsafe.Pointer, error) {
	name := C.CString(g.o.Interface)
	defer C.free(unsafe.Pointer(name))
	var why *C.char
	// Operations have a deadline of their own, before that of Gloo.
	p := C.ssr_gloo_open(g.store.c, C.int(g.o.Rank), C.int(g.o.World), name, milliseconds(g.o.Timeout+grace), &why)
	return p, take(why)
}

// Rank is this process's number of World.
func (g *Group) Rank() int  { return g.o.Rank }
func (g *Group) World() int { return g.o.World }

// Timeout is that of its options.
func (g *Group) Timeout() time.Duration { return g.o.Timeout }

// Host is the address of this machine towards the group's store, where other members
// can reach it.
func (g *Group) Host() (string, error) {
	c, err := net.Dial("udp", net.JoinHostPort(g.o.Host, strconv.Itoa(g.o.Port))) // sends nothing
	if err != nil {
		return "", fmt.Errorf("c10d: address of this machine: %w", err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).IP.String(), nil
}

// Over is closed when the group is over, by a failure; then Err says why.
func (g *Group) Over() <-chan struct{} { return g.over }

// Err is why the group is over, nil as long as it is not.
func (g *Group) Err() error {
	select {
	case <-g.over:
		return g.err
	default:
		return nil
	}
}

// Close leaves the group. Who holds the store waits a little for those who need it.
func (g *Group) Close() {
	g.unwatch()
	g.watch.Wait()
	if g.Err() != nil {
		go g.free() // Gloo ends an operation only by its deadline
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	all := make([]int, g.o.World)
	for r := range all {
		all[r] = r
	}
	g.leave(ctx, all)
	g.free()
}

func (g *Group) free() {
	g.store.calls.Wait()
	if g.process != nil {
		C.ssr_gloo_close(g.process)
	}
	g.store.close()
}

// leave says that this process has no more need of the store; who holds it waits for
// these others.
func (g *Group) leave(ctx context.Context, others []int) {
	if g.store.set(ctx, member("left", g.o.Rank), "1") != nil || g.o.Rank != 0 || g.o.External {
		return
	}
	for _, r := range others {
		if g.store.await(ctx, member("left", r)) != nil {
			return
		}
	}
}

// exchange sends send[r] to each rank r and gives what came from each, of recv[r]
// bytes, to take; it is valid until take returns.
func (g *Group) exchange(ctx context.Context, what string, send [][]byte, recv []int, take func(from [][]byte)) error {
	if err := g.Err(); err != nil {
		return err
	}
	g.begun.Add(1)
	x, err := newTransfer(send, recv)
	if err != nil {
		return g.giveUp(what, err, true)
	}
	defer x.free()
	if err := x.start(g.process); err != nil {
		return g.giveUp(what, err, false)
	}
	deadline := time.After(g.o.Timeout)
	for pause := time.Microsecond; ; pause = min(2*pause, time.Millisecond) {
		done, err := x.done()
		if err != nil {
			return g.giveUp(what, err, false)
		}
		if done {
			take(x.to)
			return nil
		}
		select {
		case <-time.After(pause):
		case <-g.over:
			return g.err
		case <-ctx.Done():
			return g.giveUp(what, context.Cause(ctx), true)
		case <-deadline:
			return g.giveUp(what, errLate, false)
		}
	}
}

// Fail tells the other members that this process gives up and why, so that they do
// not wait for it. It returns the error, or that of a group which was over before.
func (g *Group) Fail(err error) error { return g.giveUp("", err, true) }

// member is a member's own key.
func member(what string, rank int) string { return fmt.Sprintf("%s/%d", what, rank) }

// absent are the members that have not joined; none where the store does not answer.
func (g *Group) absent() (ranks []int) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	for r := range g.o.World {
		if there, err := g.store.has(ctx, member("joined", r)); err == nil && !there {
			ranks = append(ranks, r)
		}
	}
	return ranks
}

// named is the beginning of a sentence about ranks.
func named(ranks []int, one, several string) string {
	if len(ranks) == 1 {
		return fmt.Sprintf("rank %d %s", ranks[0], one)
	}
	return fmt.Sprintf("ranks %s %s", strings.Trim(strings.ReplaceAll(fmt.Sprint(ranks), " ", ", "), "[]"), several)
}
