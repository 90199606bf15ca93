package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/ssr-go/ssr/kernels/device"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/model/sched"
)

// loop owns the scheduler. It ends when the engine is closed.
func (e *Engine) loop() {
	defer close(e.ended)
	for {
		if err := e.receive(); err != nil {
			e.abandon(err)
			return
		}
		e.cancel()
		start := time.Now()
		worked, err := e.step()
		e.mu.Lock()
		e.stats.Stats = e.sched.Stats()
		if worked {
			e.stats.Steps++
			e.stats.Compute += time.Since(start)
		}
		e.mu.Unlock()
		if err != nil {
			e.fail(fmt.Errorf("engine: %w", err))
			return
		}
		if !worked {
			idle := time.Now()
			<-e.wake
			e.mu.Lock()
			e.stats.Idle += time.Since(idle)
			e.mu.Unlock()
		}
	}
}

// receive takes what arrived since the last step; an error says that the engine
// is closed.
func (e *Engine) receive() error {
	e.mu.Lock()
	arrived, released, closed := e.arrived, e.released, e.closed
	e.arrived, e.released = nil, nil
	e.mu.Unlock()
	for _, c := range arrived {
		ticket, err := e.sched.Add(c.req.ID, c.req.Tokens, c.limit)
		if err != nil {
			c.finish(fmt.Errorf("engine: %w", err))
			continue
		}
		e.active[ticket] = c
	}
	for _, id := range released {
		e.sched.Release(id)
	}
	if closed {
		return ErrClosed
	}
	return nil
}

// cancel ends the requests whose caller has gone.
func (e *Engine) cancel() {
	for ticket, c := range e.active {
		if c.ctx.Err() != nil {
			c.out.Finish = gen.FinishCancelled
			e.end(ticket, nil)
		}
	}
}

func (e *Engine) end(ticket sched.Ticket, err error) {
	e.sched.Finish(ticket)
	e.active[ticket].finish(err)
	delete(e.active, ticket)
}

// step computes one batch under weights that stay as they are meanwhile.
func (e *Engine) step() (worked bool, err error) {
	defer torch.Catch(&err)
	err = e.policy.Read(func(version int64, _ *model.Weights) error {
		e.sched.SetVersion(version)
		plan := e.sched.Step()
		if len(plan) == 0 {
			return nil
		}
		worked = true
		// Steps are short; a half-computed one would leave the cache half-written.
		ctx, workers := context.Background(), e.policy.Workers()
		var err error
		if e.together(plan) {
			e.deal(plan, 1)
			e.mu.Lock()
			e.stats.Together++
			e.mu.Unlock()
			err = workers.Lead(ctx, func(t *device.Team) error { return e.shards[0].run(e, t) })
		} else {
			e.deal(plan, len(e.shards))
			err = workers.Each(ctx, func(worker int) error { return e.shards[worker].run(e, nil) })
		}
		if err != nil {
			return err
		}
		e.sched.Commit()
		for _, s := range e.shards {
			for i, w := range s.sampled {
				e.advance(w.Ticket, s.draws[i], version)
			}
		}
		return nil
	})
	return worked, err
}

// advance gives a request the token that was drawn for it.
func (e *Engine) advance(ticket sched.Ticket, d draw, version int64) {
	c := e.active[ticket]
	if d.token < 0 {
		e.end(ticket, fmt.Errorf("engine: request %q: the logits of the token at position %d are not finite: the policy has diverged (version %d)",
			c.req.ID, c.position(), version))
		return
	}
	if c.take(d, version) {
		e.end(ticket, nil)
		return
	}
	e.sched.Append(ticket, d.token)
}

// fail is the end of an engine that cannot compute any more; it answers every
// request with the reason until it is closed.
func (e *Engine) fail(err error) {
	e.mu.Lock()
	e.failed = err
	e.mu.Unlock()
	e.abandon(err)
}

func (e *Engine) abandon(err error) {
	for ticket, c := range e.active {
		c.finish(err)
		delete(e.active, ticket)
	}
	e.mu.Lock()
	arrived := e.arrived
	e.arrived = nil
	e.mu.Unlock()
	for _, c := range arrived {
		c.finish(err)
	}
}
