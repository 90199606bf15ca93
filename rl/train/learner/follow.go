package learner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/ssr-go/ssr/internal/rpc"
	"github.com/ssr-go/ssr/kernels/collective/c10d"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
)

// Follow serves this process to rank 0 of the group, which calls Lead, until that
// calls Leave or the group is over. register adds what is served, by Serve and others.
func Follow(ctx context.Context, g *c10d.Group, register func(*rpc.Server)) error {
	host, err := g.Host()
	if err != nil {
		return g.Fail(err)
	}
	secrets, err := g.AllGatherBytes(ctx, nil)
	if err != nil {
		return err
	}
	s, err := rpc.Listen(host, string(secrets[0]))
	if err != nil {
		return g.Fail(err)
	}
	leave := make(chan struct{}, 1)
	rpc.Handle(s, "leave", func(context.Context, bool) (bool, error) {
		leave <- struct{}{}
		return true, nil
	})
	register(s)
	s.Start()
	defer s.Close()
	if _, err := g.AllGatherBytes(ctx, []byte(s.Addr())); err != nil {
		return err
	}
	select {
	case <-leave:
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		s.Finish(ctx) // else rank 0 may see its call cut short; it is gone where this fails
		return nil
	case <-g.Over():
		return g.Err()
	case <-ctx.Done():
		return g.Fail(context.Cause(ctx))
	}
}

// Lead gives a client of every process that follows, in their order from rank 1 on.
func Lead(ctx context.Context, g *c10d.Group) ([]*rpc.Client, error) {
	secret := rpc.NewSecret()
	if _, err := g.AllGatherBytes(ctx, []byte(secret)); err != nil {
		return nil, err
	}
	addresses, err := g.AllGatherBytes(ctx, nil)
	if err != nil {
		return nil, err
	}
	var clients []*rpc.Client
	for _, a := range addresses[1:] {
		clients = append(clients, rpc.Dial(string(a), secret))
	}
	return clients, nil
}

// Leave lets the processes that follow end, and waits a minute for those that do not
// answer.
func Leave(ctx context.Context, clients []*rpc.Client) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i, c := range clients {
		if _, failed := rpc.Call[bool](ctx, c, "leave", true); failed != nil {
			err = errors.Join(err, fmt.Errorf("rank %d: %w", i+1, failed))
		}
		c.Close()
	}
	return err
}

// The messages between a remote replica and the process that has it.
type (
	// facts are what does not change in an update, and the version.
	facts struct {
		Version     int64
		GPU         bool
		Len, Lo, Hi int
		Pieces      []int
		Sums        []sum
	}
	// sum is a checksum of a tensor.
	sum struct {
		Name string
		Sum  uint32
	}
	// event is a sign of an accumulation: what GradientFunc is to be called with, what of
	// the gradient is final, or the end.
	event struct {
		Batch               int
		Logprobs, Entropies []float64
		Final               bool
		From                int
		Ended               bool
	}
	reduceMessage struct {
		Lo, Hi int
		Bounds []int // of the shards' parts within
	}
	updateMessage struct {
		Optimizer train.AdamW
		Scale     float64
		Bounds    []int
	}
)

// Serve lets the learner of rank 0 train a policy of this process as one of its
// replicas. The policy is made with model.Options.Shard of this rank. It returns
// what frees, when the learner calls no more, the sums of gradients between GPUs.
func Serve(s *rpc.Server, p *model.Policy, g *c10d.Group) (free func()) {
	r, between := replica{p}, &processes{Group: g}
	var running atomic.Pointer[accumulation]
	end := func() { // of an accumulation that was broken off
		if a := running.Swap(nil); a != nil {
			a.end()
		}
	}
	rpc.Handle(s, "join", func(_ context.Context, id []byte) (bool, error) {
		number, _ := p.Device().GPU()
		return true, between.join(id, number)
	})
	rpc.Handle(s, "facts", func(context.Context, bool) (facts, error) { return factsOf(p), nil })
	rpc.Handle(s, "accumulate", func(ctx context.Context, batches []rl.Packed) (event, error) {
		end()
		a := accumulate(g, r.Accumulate, batches)
		running.Store(a)
		return a.next(ctx)
	})
	rpc.Handle(s, "continue", func(ctx context.Context, gradient []float64) (event, error) {
		a := running.Load()
		if a == nil {
			return event{}, errNoAccumulation
		}
		return a.answer(ctx, gradient)
	})
	rpc.Handle(s, "next", func(ctx context.Context, _ bool) (event, error) {
		a := running.Load()
		if a == nil {
			return event{}, errNoAccumulation
		}
		return a.next(ctx)
	})
	rpc.Handle(s, "logprobs", r.Logprobs)
	rpc.Handle(s, "prepare", func(context.Context, bool) (bool, error) { return true, r.Prepare() })
	// What all processes do together ends with the group, not with rank 0's call: so
	// everybody hears whose fault it is.
	rpc.Handle(s, "reduce", func(ctx context.Context, m reduceMessage) (bool, error) {
		return true, r.Reduce(ctx, m.Lo, m.Hi, func(part *torch.Tensor) error {
			return between.ReduceScatter(context.WithoutCancel(ctx), g.Rank(), part, m.Bounds)
		})
	})
	rpc.Handle(s, "squares", func(context.Context, bool) (float64, error) { return r.Squares() })
	rpc.Handle(s, "update", func(ctx context.Context, m updateMessage) (int64, error) {
		err := r.Update(m.Optimizer, m.Scale, func(weights *torch.Tensor) error {
			return between.AllGather(context.WithoutCancel(ctx), g.Rank(), weights, m.Bounds)
		})
		return r.Version(), err
	})
	rpc.Handle(s, "clear", func(context.Context, bool) (bool, error) {
		end()
		r.Clear()
		return true, nil
	})
	rpc.Handle(s, "load", func(_ context.Context, dir string) (facts, error) {
		err := load(p, dir)
		return factsOf(p), err
	})
	rpc.HandleStream(s, "shard", func(w io.Writer) error { return p.WriteShard(w) })
	return func() {
		if between.ring != nil {
			between.ring.Close()
		}
	}
}

func factsOf(p *model.Policy) facts {
	f := facts{Version: p.Version(), Pieces: p.Pieces()}
	_, f.GPU = p.Device().GPU()
	f.Lo, f.Hi, f.Len = p.Shard()
	for _, params := range [][]model.Parameter{p.Parameters(), p.Trained()} {
		for _, param := range params {
			f.Sums = append(f.Sums, sum{param.Name, checksum(param.Tensor)})
		}
	}
	return f
}

// accumulation is a call of Accumulate whose GradientFunc is in another process.
type accumulation struct {
	events  chan event
	answers chan []float64
	cancel  context.CancelCauseFunc
	done    chan struct{}
	err     error // set before done is closed
}

var errNoAccumulation = errors.New("no accumulation is under way")

// accumulate begins one, which ends with the group at the latest. What is final is told
// without waiting for rank 0, as long as that is not far behind.
func accumulate(g *c10d.Group, f func(context.Context, []rl.Packed, train.GradientFunc, func(int)) error, batches []rl.Packed) *accumulation {
	ctx, cancel := context.WithCancelCause(context.Background())
	a := &accumulation{events: make(chan event, 256), answers: make(chan []float64), cancel: cancel, done: make(chan struct{})}
	go func() {
		select {
		case <-g.Over():
			cancel(g.Err())
		case <-a.done:
		}
	}()
	go func() {
		defer close(a.done)
		a.err = f(ctx, batches, func(i int, logprobs, entropies []float64) ([]float64, error) {
			select {
			case a.events <- event{Batch: i, Logprobs: logprobs, Entropies: entropies}:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			select {
			case gradient := <-a.answers:
				return gradient, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}, func(from int) {
			select {
			case a.events <- event{Final: true, From: from}:
			case <-ctx.Done():
			}
		})
	}()
	return a
}

// next waits for what comes; whoever does not wait for it breaks the accumulation off.
func (a *accumulation) next(ctx context.Context) (event, error) {
	select {
	case e := <-a.events:
		return e, nil
	case <-a.done:
		return a.last()
	case <-ctx.Done():
		a.end()
		return event{}, context.Cause(ctx)
	}
}

// last is what comes when all is done: the events that are left, and the end.
func (a *accumulation) last() (event, error) {
	select {
	case e := <-a.events:
		return e, nil
	default:
		return event{Ended: true}, a.err
	}
}

func (a *accumulation) answer(ctx context.Context, gradient []float64) (event, error) {
	select {
	case a.answers <- gradient:
		return a.next(ctx)
	case <-a.done:
		return a.last()
	}
}

func (a *accumulation) end() {
	a.cancel(context.Canceled)
	<-a.done
}
