package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"
)

// Pool is a Backend that keeps the number of live sandboxes of another one
// bounded, and some of them warm: started before they are asked for. A sandbox
// is never given out twice; what is safe to reuse is one in which nothing but
// "true" has run.
type Pool struct {
	Backend

	slots chan struct{} // nil: no bound

	mu     sync.Mutex
	warm   map[string]*shelf
	closed bool
	work   sync.WaitGroup
	// stop ends what is being started when the pool closes.
	ctx  context.Context
	stop context.CancelFunc
}

// shelf holds warm sandboxes of one folder.
type shelf struct {
	spec  Spec
	size  int
	ready []warmBox
	// coming counts those being started.
	coming int
}

type warmBox struct {
	box   Sandbox
	since time.Time
}

// NewPool bounds the live sandboxes of b, warm ones included, to most at once; 0
// sets no bound. Close closes b too.
func NewPool(b Backend, most int) *Pool {
	p := &Pool{Backend: b, warm: map[string]*shelf{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	if most > 0 {
		p.slots = make(chan struct{}, most)
	}
	return p
}

// Keep has n sandboxes ready for specs like this one, whatever their owner. Until
// the pool is closed or Keep is called with n = 0, the folder must not change:
// a warm sandbox has the content of when it was started. One that has waited for
// half its lifetime is replaced when it is met.
func (p *Pool) Keep(spec Spec, n int) {
	spec.Owner = "warm"
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.warm[spec.Dir]
	if s == nil {
		s = &shelf{}
		p.warm[spec.Dir] = s
	}
	s.spec, s.size = spec, n
	p.fillLocked(s)
}

func (p *Pool) fillLocked(s *shelf) {
	for !p.closed && len(s.ready)+s.coming < s.size {
		s.coming++
		p.work.Go(func() {
			box, err := p.start(p.ctx, s.spec)
			if err == nil {
				_, err = box.Exec(p.ctx, Cmd{Args: []string{"true"}})
			}
			p.mu.Lock()
			s.coming--
			keep := err == nil && !p.closed && len(s.ready) < s.size
			if keep {
				s.ready = append(s.ready, warmBox{box, time.Now()})
			}
			p.mu.Unlock()
			if !keep && box != nil {
				box.Close()
			}
			// A failure is not tried again here: Start meets it and says so.
		})
	}
}

// take returns a warm sandbox for spec, or nil.
func (p *Pool) take(spec Spec) Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.warm[spec.Dir]
	if s == nil || s.spec.Limits != spec.Limits || !maps.Equal(s.spec.Env, spec.Env) {
		return nil
	}
	defer p.fillLocked(s)
	half := spec.Limits.WithDefaults().Lifetime / 2
	for len(s.ready) > 0 {
		first := s.ready[0]
		s.ready = slices.Delete(s.ready, 0, 1)
		if time.Since(first.since) < half {
			return first.box
		}
		p.work.Go(func() { first.box.Close() })
	}
	return nil
}

// Start implements Backend. It waits for room until ctx ends.
func (p *Pool) Start(ctx context.Context, spec Spec) (Sandbox, error) {
	if box := p.take(spec); box != nil {
		return box, nil
	}
	return p.start(ctx, spec)
}

func (p *Pool) start(ctx context.Context, spec Spec) (Sandbox, error) {
	return p.admit(ctx, func() (Sandbox, error) { return p.Backend.Start(ctx, spec) })
}

// admit waits for room and starts a sandbox in it.
func (p *Pool) admit(ctx context.Context, start func() (Sandbox, error)) (Sandbox, error) {
	if p.slots != nil {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for one of %d sandboxes to end: %w", cap(p.slots), ctx.Err())
		}
	}
	box, err := start()
	if err != nil {
		p.free()
		return nil, err
	}
	return &pooled{Sandbox: box, pool: p}, nil
}

func (p *Pool) free() {
	if p.slots != nil {
		<-p.slots
	}
}

// Close implements Backend.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return os.ErrClosed
	}
	p.closed = true
	var ready []warmBox
	for _, s := range p.warm {
		ready = append(ready, s.ready...)
		s.ready = nil
	}
	p.mu.Unlock()
	p.stop()
	p.work.Wait()
	var errs []error
	for _, w := range ready {
		errs = append(errs, w.box.Close())
	}
	return errors.Join(append(errs, p.Backend.Close())...)
}

// pooled gives its slot back when it is closed.
type pooled struct {
	Sandbox
	pool *Pool
	once sync.Once
}

// Fork waits for room, as Start does.
func (s *pooled) Fork(ctx context.Context) (Sandbox, error) {
	return s.pool.admit(ctx, func() (Sandbox, error) { return s.Sandbox.Fork(ctx) })
}

func (s *pooled) Close() error {
	err := s.Sandbox.Close()
	s.once.Do(s.pool.free)
	return err
}
