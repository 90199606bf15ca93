package device

import (
	"context"
	"sync/atomic"
)

// Team is the workers of a pool while one of them leads: it shares its loops with
// whichever of the others are free. A nil Team runs a loop on the caller alone.
type Team struct {
	helpers int
	loops   chan *loop
}

// partsEach is how many parts of a loop there are for each worker: several, so that
// one which is held up leaves parts to the others.
const partsEach = 4

// loop is one loop's parts, which workers take one after another.
type loop struct {
	f          func(from, to int)
	n, length  int
	all        int64
	next, left atomic.Int64
	done       chan struct{} // closed when all parts have been run
}

// Lead runs f on the first worker, with the others at its call, and returns its error.
// A panic of f, or of a part of its loops, continues in the caller after all have ended.
func (p *Pool) Lead(ctx context.Context, f func(t *Team) error) error {
	t := &Team{helpers: len(p.workers) - 1, loops: make(chan *loop, len(p.workers))}
	return p.Each(ctx, func(worker int) error {
		if worker == 0 {
			defer close(t.loops)
			return f(t)
		}
		for l := range t.loops {
			l.run()
		}
		return nil
	})
}

// Loop runs f over all of [0, n) in parts, several at once, and returns when all have
// been run. Parts begin at multiples of unit. It may be called by the leader only.
func (t *Team) Loop(n, unit int, f func(from, to int)) {
	units := (n + unit - 1) / unit
	if t == nil || t.helpers == 0 || units < 2 {
		f(0, n)
		return
	}
	parts := min((t.helpers+1)*partsEach, units)
	length := (units + parts - 1) / parts
	l := &loop{f: f, n: n, length: length * unit, done: make(chan struct{})}
	l.all = int64((units + length - 1) / length)
	l.left.Store(l.all)
	for range t.helpers {
		select {
		case t.loops <- l:
		default: // they have not come yet, and find enough to do when they do
		}
	}
	l.run()
	<-l.done
}

// run takes parts until there are none.
func (l *loop) run() {
	for {
		i := l.next.Add(1) - 1
		if i >= l.all {
			return
		}
		l.part(int(i))
	}
}

func (l *loop) part(i int) {
	defer func() { // after a panic, too: the leader waits
		if l.left.Add(-1) == 0 {
			close(l.done)
		}
	}()
	l.f(i*l.length, min((i+1)*l.length, l.n))
}
