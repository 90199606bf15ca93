package learner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ssr-go/ssr/internal/rpc"
	"github.com/ssr-go/ssr/kernels/collective/c10d"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

// NewDistributed returns the learner of a policy here, at rank 0, and of one in each
// other process of the group, which Serve them to these clients. The weights are equal,
// and that of rank i is made with model.Options.Shard{i, World}. It trains as
// NewReplicated does with as many replicas, to the last bit; but a step that fails
// ends the group. All policies compute on the CPU, and Gloo moves what they share, or each
// on a GPU of its own, and NCCL does.
func NewDistributed(ctx context.Context, p *model.Policy, t *token.Tokenizer, g *c10d.Group, clients []*rpc.Client) (*Learner, error) {
	if d := p.Device(); d == torch.Generic {
		return nil, fmt.Errorf("learner: %d processes, rank 0 on %v; they train on the CPU or on GPUs", g.World(), d)
	}
	l := &Learner{policies: []*model.Policy{p}, tokenizer: t}
	if err := l.distribute(ctx, g, clients); err != nil {
		l.Close()
		return nil, fmt.Errorf("learner: %w", err)
	}
	return l, nil
}

func (l *Learner) distribute(ctx context.Context, g *c10d.Group, clients []*rpc.Client) error {
	all := []replicas.Replica[*torch.Tensor]{replica{l.policies[0]}}
	var others []*remote
	for i, c := range clients {
		r := &remote{rank: i + 1, client: c, group: g}
		var err error
		if r.facts, err = call[facts](ctx, r, "facts", true); err != nil {
			return err
		}
		if err := r.check(l.policies[0]); err != nil {
			return err
		}
		all, others, l.elsewhere = append(all, r), append(others, r), append(l.elsewhere, r)
	}
	bounds := []int{0}
	for _, r := range all {
		_, hi := r.Shard()
		bounds = append(bounds, hi)
	}
	for _, r := range others {
		r.bounds = bounds
	}
	between := processes{Group: g}
	if err := between.meet(ctx, l.policies[0].Device(), others); err != nil {
		return g.Fail(err)
	}
	l.ring = between.ring
	joined, err := newGroup(all, between)
	l.group = ending{joined, g}
	return err
}

// meet joins the GPUs of all processes, where they have some.
func (p *processes) meet(ctx context.Context, d torch.Device, others []*remote) error {
	number, gpu := d.GPU()
	if !gpu {
		return nil
	}
	id, err := newRingID()
	if err != nil {
		return err
	}
	joined := make(chan error, 1+len(others))
	go func() { joined <- p.join(id, number) }()
	for _, r := range others {
		go func() {
			_, err := call[bool](ctx, r, "join", id)
			joined <- err
		}()
	}
	for range cap(joined) {
		if err := <-joined; err != nil {
			return err // who waits in NCCL for the others is left behind
		}
	}
	return nil
}

// join makes this process's GPU one of the ring that id names.
func (p *processes) join(id []byte, number int) error {
	ring, err := joinRing(id, number, p.Rank(), p.World())
	if err == nil {
		p.ring = ring
	}
	return err
}

// ending is a group of replicas in processes, which a step that fails takes down: they
// may be in the middle of an operation.
type ending struct {
	group
	processes *c10d.Group
}

func (e ending) Step(ctx context.Context, o train.AdamW) (float64, error) {
	norm, err := e.group.Step(ctx, o)
	if err != nil && !errors.Is(err, rl.ErrNonFinite) {
		err = e.processes.Fail(err)
	}
	return norm, err
}

func (e ending) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc) error {
	err := e.group.Accumulate(ctx, batches, fn)
	if errors.Is(err, replicas.ErrReducing) {
		err = e.processes.Fail(err)
	}
	return err
}

// remote is a replica of a replicas.Group that is in another process. Its vectors stay
// there.
type remote struct {
	rank   int
	client *rpc.Client
	group  *c10d.Group
	facts  facts
	bounds []int // of the shards
	failed error // why it could not be cleared
}

// call asks the other process; one that does not answer in time is as good as dead.
func call[Out, In any](ctx context.Context, r *remote, name string, in In) (Out, error) {
	var none Out
	if r.failed != nil {
		return none, r.failed
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	out, err := rpc.Call[Out](ctx, r.client, name, in)
	if err != nil {
		return none, fmt.Errorf("rank %d: %w", r.rank, err)
	}
	return out, nil
}

func (r *remote) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	most := r.group.Timeout()
	return context.WithTimeoutCause(ctx, most, fmt.Errorf("not within %v", most))
}

func (r *remote) Version() int64      { return r.facts.Version }
func (r *remote) Len() int            { return r.facts.Len }
func (r *remote) Shard() (lo, hi int) { return r.facts.Lo, r.facts.Hi }

func (r *remote) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(from int)) error {
	e, err := call[event](ctx, r, "accumulate", stripped(batches))
	for err == nil && !e.Ended {
		if e.Final {
			final(e.From)
			e, err = call[event](ctx, r, "next", true)
			continue
		}
		var gradient []float64
		if gradient, err = fn(e.Batch, e.Logprobs, e.Entropies); err == nil {
			e, err = call[event](ctx, r, "continue", gradient)
		}
	}
	return err
}

// stripped are micro-batches with what a policy needs of them.
func stripped(batches []rl.Packed) []rl.Packed {
	out := make([]rl.Packed, len(batches))
	for i, b := range batches {
		out[i] = rl.Packed{Tokens: b.Tokens, Offsets: b.Offsets, Mask: b.Mask}
	}
	return out
}

func (r *remote) Logprobs(ctx context.Context, batches []rl.Packed) ([][]float64, error) {
	return call[[][]float64](ctx, r, "logprobs", stripped(batches))
}

func (r *remote) Prepare() error {
	_, err := call[bool](context.Background(), r, "prepare", true)
	return err
}

func (r *remote) Pieces() []int { return r.facts.Pieces }

// Reduce sums where the gradient is; sum would have only nil to be given.
func (r *remote) Reduce(ctx context.Context, lo, hi int, _ func(*torch.Tensor) error) error {
	_, err := call[bool](ctx, r, "reduce", reduceMessage{lo, hi, replicas.Within(r.bounds, lo, hi)})
	return err
}

func (r *remote) Squares() (float64, error) {
	return call[float64](context.Background(), r, "squares", true)
}

// Update shares the weights where they are; share would have only nil to give.
func (r *remote) Update(o train.AdamW, scale float64, _ func(*torch.Tensor) error) (err error) {
	r.facts.Version, err = call[int64](context.Background(), r, "update", updateMessage{o, scale, r.bounds})
	return err
}

// Clear waits less than other calls: a process that cannot do this is not to be used.
func (r *remote) Clear() {
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Minute, errors.New("not within a minute"))
	defer cancel()
	if r.group.Err() == nil {
		_, r.failed = call[bool](ctx, r, "clear", true)
	}
}

// load reads a checkpoint there, under the same path.
func (r *remote) load(dir string, first *model.Policy) (err error) {
	if r.facts, err = call[facts](context.Background(), r, "load", dir); err != nil {
		return err
	}
	return r.check(first)
}

// check compares the weights with those of rank 0.
func (r *remote) check(first *model.Policy) error {
	want := factsOf(first)
	if want.GPU != r.facts.GPU {
		where := map[bool]string{true: "a GPU", false: "the CPU"}
		return fmt.Errorf("rank %d computes on %s and rank 0 on %s; let all compute on either", r.rank, where[r.facts.GPU], where[want.GPU])
	}
	if len(want.Sums) != len(r.facts.Sums) || want.Version != r.facts.Version {
		return fmt.Errorf("rank %d has another model than rank 0: version %d and %d tensors, not %d and %d",
			r.rank, r.facts.Version, len(r.facts.Sums), want.Version, len(want.Sums))
	}
	for i, s := range want.Sums {
		if r.facts.Sums[i] != s {
			return fmt.Errorf("%s of rank %d is not that of rank 0; load all from one folder", s.Name, r.rank)
		}
	}
	return nil
}

// standIn brings the replica's part of the optimizer's state here.
func (r *remote) standIn(first *model.Policy) (*model.Policy, func(), error) {
	ctx, cancel := r.bound(context.Background())
	defer cancel()
	stream, err := r.client.Open(ctx, "shard")
	if err == nil {
		defer stream.Close()
		var q *model.Policy
		var free func()
		if q, free, err = first.StandIn(stream); err == nil {
			return q, free, nil
		}
	}
	return nil, nil, fmt.Errorf("rank %d: %w", r.rank, err)
}

// processes is the Reducer between processes of what each has on its device. The others'
// operations begin there, in Reduce and Update.
type processes struct {
	*c10d.Group
	ring ring // of GPUs, or nil
}

func (p processes) ReduceScatter(ctx context.Context, rank int, vector *torch.Tensor, bounds []int) error {
	switch {
	case p.ring != nil:
		return p.within(ctx, func(ctx context.Context) error { return p.ring.ReduceScatter(ctx, rank, vector, bounds) })
	case vector.DType() == torch.Float64:
		return c10d.Vectors[float64]{Group: p.Group}.ReduceScatter(ctx, rank, torch.Data[float64](vector), bounds)
	}
	return c10d.Vectors[float32]{Group: p.Group}.ReduceScatter(ctx, rank, torch.Data[float32](vector), bounds)
}

func (p processes) AllGather(ctx context.Context, rank int, vector *torch.Tensor, bounds []int) error {
	switch {
	case p.ring != nil:
		return p.within(ctx, func(ctx context.Context) error { return p.ring.AllGather(ctx, rank, vector, bounds) })
	case vector.DType() == torch.Float64:
		return c10d.Vectors[float64]{Group: p.Group}.AllGather(ctx, rank, torch.Data[float64](vector), bounds)
	}
	return c10d.Vectors[float32]{Group: p.Group}.AllGather(ctx, rank, torch.Data[float32](vector), bounds)
}

// within runs an operation that does not know of the group: it ends with it, at its
// timeout, and takes it down where it fails.
func (p processes) within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.Timeout(), fmt.Errorf("not within %v", p.Timeout()))
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		select {
		case <-p.Over():
			end(p.Err())
		case <-ctx.Done():
		}
	}()
	err := f(ctx)
	if err != nil {
		err = p.Fail(cmp.Or(context.Cause(ctx), err))
	}
	return err
}
