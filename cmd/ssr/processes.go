package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/ssr-go/ssr/internal/rpc"
	"github.com/ssr-go/ssr/kernels/collective/c10d"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/model/gen"
	"github.com/ssr-go/ssr/rl/train/learner"
	"github.com/ssr-go/ssr/rollout"
)

// processes train together, as a launcher started them: each has a replica of the
// policy. Rank 0 leads: it plays the episodes and writes the run; the others generate
// and train for it. nil is a process alone.
type processes struct {
	*c10d.Launch
	group   *c10d.Group
	clients []*rpc.Client // rank 0's, of the others
}

// joinProcesses meets the others, where there are any, within timeout, which also
// bounds how long they wait for each other later.
func joinProcesses(ctx context.Context, timeout time.Duration) (*processes, error) {
	launch, err := c10d.FromEnvironment(os.Getenv)
	if launch == nil || err != nil {
		return nil, err
	}
	launch.Timeout = timeout
	g, err := c10d.Join(ctx, launch.Options)
	if err != nil {
		return nil, err
	}
	return &processes{Launch: launch, group: g}, nil
}

// place fits a configuration to this process: its share of the machine's cores, and its
// GPU.
func (ps *processes) place(c policyConfig) (policyConfig, error) {
	if ps == nil {
		return c, nil
	}
	if c.Replicas != 1 {
		return c, fmt.Errorf("policy.replicas is %d, and %d processes train: each has one replica; set it to 1", c.Replicas, ps.World)
	}
	if len(c.Device) == 1 && c.Device[0] == gpus {
		c.Device = deviceNames{torch.CUDA(ps.LocalRank).String()}
	}
	if c.Workers == 0 {
		c.Workers = max(1, runtime.GOMAXPROCS(0)/ps.LocalWorld)
	}
	return c, nil
}

// shard makes options those of this process's replica.
func (ps *processes) shard(o *model.Options) {
	if ps != nil {
		o.Shard = model.Shard{Index: ps.Rank, Of: ps.World}
	}
}

// sharing is how many processes share this machine's memory.
func (ps *processes) sharing() int64 {
	if ps == nil {
		return 1
	}
	return int64(ps.LocalWorld)
}

// briefing is what rank 0 tells the others first: its configuration, and the folder of
// the weights to begin with.
type briefing struct {
	Config string `json:"config"`
	Model  string `json:"model"`
}

// lead briefs the other processes and waits until they are ready.
func (ps *processes) lead(ctx context.Context, conf config, start string) error {
	if ps == nil {
		return nil
	}
	text, err := conf.marshal()
	if err != nil {
		return err
	}
	data, err := json.Marshal(briefing{string(text), start})
	if err != nil {
		return err
	}
	if _, err := ps.group.AllGatherBytes(ctx, data); err != nil {
		return err
	}
	ps.clients, err = learner.Lead(ctx, ps.group)
	return err
}

// watch returns a context that ends when the group is over.
func (ps *processes) watch(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if ps != nil {
		go func() {
			select {
			case <-ps.group.Over():
				cancel(ps.group.Err())
			case <-ctx.Done():
			}
		}()
	}
	return ctx, cancel
}

// learner trains the replicas of this process, or one of each.
func (ps *processes) learner(ctx context.Context, p *policy) (*learner.Learner, error) {
	if ps == nil {
		return learner.NewReplicated(p.replicas(), p.tokenizer)
	}
	return learner.NewDistributed(ctx, p.Policy, p.tokenizer, ps.group, ps.clients)
}

// dismiss lets the other processes end.
func (ps *processes) dismiss(ctx context.Context) error {
	if ps == nil {
		return nil
	}
	return learner.Leave(ctx, ps.clients)
}

// follow generates and trains for rank 0 until that lets go.
func (ps *processes) follow(ctx context.Context, o output) error {
	fmt.Fprintf(o.err, "rank %d of %d generates and trains for rank 0\n", ps.Rank, ps.World)
	told, err := ps.group.AllGatherBytes(ctx, nil)
	if err != nil {
		return err
	}
	var b briefing
	if err := json.Unmarshal(told[0], &b); err != nil {
		return fmt.Errorf("what rank 0 says: %w", err)
	}
	conf, err := parseConfig([]document{{"the configuration of rank 0", []byte(b.Config)}})
	if err != nil {
		return err
	}
	if conf.Policy, err = ps.place(conf.Policy); err != nil {
		return err
	}
	p, err := openReplicas(b.Model, conf.Policy, ps)
	if err != nil {
		return err
	}
	defer p.Close()
	g, err := p.newGenerator(conf.Policy)
	if err != nil {
		return err
	}
	defer g.Close()
	free := func() {}
	defer func() { free() }()
	return learner.Follow(ctx, ps.group, func(s *rpc.Server) {
		free = learner.Serve(s, p.Policy, ps.group)
		rpc.Handle(s, "generate", g.Generate)
		rpc.Handle(s, "release", func(_ context.Context, id string) (bool, error) {
			g.Release(id)
			return true, nil
		})
	})
}

// follower is the policy of another process.
type follower struct {
	rank   int
	client *rpc.Client
	group  *c10d.Group
}

// policies are those of the other processes.
func (ps *processes) policies() (all []rollout.Policy) {
	if ps == nil {
		return nil
	}
	for i, c := range ps.clients {
		all = append(all, follower{i + 1, c, ps.group})
	}
	return all
}

// Generate answers as an engine here would. A process that does not answer ends the
// group, and with it the play: its episodes are played again when the run goes on.
func (f follower) Generate(ctx context.Context, req gen.Request) (gen.Completion, error) {
	most := f.group.Timeout()
	bounded, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("not within %v", most))
	defer cancel()
	out, err := rpc.Call[gen.Completion](bounded, f.client, "generate", req)
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return gen.Completion{Finish: gen.FinishCancelled}, nil
	case errors.Is(err, rpc.ErrLost):
		err = f.group.Fail(fmt.Errorf("rank %d: %w", f.rank, err))
		<-ctx.Done()
	}
	return gen.Completion{}, err
}

// Release drops what the process keeps of a trajectory; one that does not answer will
// be noticed by the next call that needs it.
func (f follower) Release(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	rpc.Call[bool](ctx, f.client, "release", id)
}
