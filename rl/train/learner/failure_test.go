package learner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ssr-go/ssr/kernels/collective"
	"github.com/ssr-go/ssr/kernels/torch"
	"github.com/ssr-go/ssr/model"
	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rl/train/replicas"
)

// faulty fails at one place of a step.
type faulty struct {
	replicas.Replica[*torch.Tensor]
	at  string
	err error
}

func (f *faulty) fails(at string) error {
	if f.at == at {
		return f.err
	}
	return nil
}

func (f *faulty) Accumulate(ctx context.Context, batches []rl.Packed, fn train.GradientFunc, final func(int)) error {
	return f.Replica.Accumulate(ctx, batches, func(i int, logprobs, entropies []float64) ([]float64, error) {
		if err := f.fails("accumulate"); err != nil && i == len(batches)-1 {
			return nil, err
		}
		return fn(i, logprobs, entropies)
	}, final)
}

func (f *faulty) Prepare() error {
	if err := f.fails("prepare"); err != nil {
		return err
	}
	return f.Replica.Prepare()
}

func (f *faulty) Squares() (float64, error) {
	if err := f.fails("squares"); err != nil {
		return 0, err
	}
	return f.Replica.Squares()
}

func (f *faulty) Update(o train.AdamW, scale float64, share func(*torch.Tensor) error) error {
	return f.Replica.Update(o, scale, func(weights *torch.Tensor) error {
		if err := f.fails("update"); err != nil {
			return err
		}
		return share(weights)
	})
}

// TestFailingReplica: where a replica fails in the middle of a step, the step ends with
// an error that names it, and the others do not wait for it. Before the update all
// weights and states are as they were, and training goes on as if nothing had been;
// during it, the learner refuses to go on.
func TestFailingReplica(t *testing.T) {
	for _, on := range []torch.Device{torch.CPU, torch.Generic} {
		for _, at := range []string{"accumulate", "prepare", "squares", "update"} {
			t.Run(fmt.Sprint(at, " on ", on), func(t *testing.T) { testFailure(t, model.Options{Device: on}, at) })
		}
	}
	t.Run("accumulate with shards of the gradient", func(t *testing.T) { testFailure(t, model.Options{ShardGradient: true}, "accumulate") })
}

func testFailure(t *testing.T, o model.Options, at string) {
	_, _, calm := trained(t, 3, o, 1)
	_, before, l := trained(t, 3, o, 1)
	lost := errors.New("device lost")
	broken := &faulty{Replica: replica{l.policies[1]}, at: at, err: lost}
	var err error
	l.group, err = replicas.New([]replicas.Replica[*torch.Tensor]{replica{l.policies[0]}, broken, replica{l.policies[2]}},
		collective.NewLocal(3, tensors{}))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = update(l, 1)
	if !errors.Is(err, lost) || !strings.Contains(err.Error(), "replica 1: ") {
		t.Fatalf("%v, want %v of replica 1", err, lost)
	}
	broken.at = ""
	if at == "update" {
		if _, _, err = update(l, 1); !errors.Is(err, lost) {
			t.Errorf("it goes on after half an update: %v", err)
		}
		return
	}
	same(t, "after the failure", saved(t, l), before)
	for _, l := range []*Learner{l, calm} {
		if _, _, err := update(l, 1); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "a step after the failure", saved(t, l), saved(t, calm))
}

// refuse is an update whose last micro-batch, in the order of drawn, the objective refuses.
func refuse(l *Learner, seed uint64) error {
	all := drawn(seed)
	err := l.Accumulate(context.Background(), all, func(i int, _, _ []float64) ([]float64, error) {
		if i == len(all)-1 {
			return nil, rl.ErrNonFinite
		}
		return all[i].Advantages, nil
	})
	if !errors.Is(err, rl.ErrNonFinite) || errors.Is(err, replicas.ErrReducing) {
		return fmt.Errorf("a refused update: %w", err)
	}
	return nil
}

// TestRefusedUpdate: an update that is refused after some of its micro-batches have been
// summed leaves nothing behind.
func TestRefusedUpdate(t *testing.T) {
	for _, sharded := range []bool{false, true} {
		_, want, _ := trained(t, 3, model.Options{ShardGradient: sharded}, 1)
		l := newReplicated(t, 3, model.Options{ShardGradient: sharded})
		if err := refuse(l, 5); err != nil {
			t.Fatal(err)
		}
		if _, _, err := update(l, 0); err != nil {
			t.Fatal(err)
		}
		same(t, "after a refused update", saved(t, l), want)
	}
}

// TestUnequalReplicas: replicas that are not copies of each other, whose shards do not
// make up the whole, or that share no memory, are refused.
func TestUnequalReplicas(t *testing.T) {
	two := newReplicas(t, 2, model.Options{})
	if _, err := NewReplicated(two[1:], nil); err == nil || !strings.Contains(err.Error(), "shard") {
		t.Errorf("a second half alone: %v", err)
	}
	apart := newReplicas(t, 2, model.Options{Device: torch.Generic})
	if _, err := NewReplicated([]*model.Policy{two[0], apart[1]}, nil); err == nil || !strings.Contains(err.Error(), "replica 1 is on generic and replica 0 on cpu") {
		t.Errorf("a replica on another device: %v", err)
	}
	torch.Data[float32](two[1].Parameters()[3].Tensor)[5]++
	if _, err := NewReplicated(two, nil); err == nil || !strings.Contains(err.Error(), two[1].Parameters()[3].Name+" of replica 1") {
		t.Errorf("another weight: %v", err)
	}
}

// TestNoRing: where GPUs cannot be joined, in one process or several, the error says what
// lacks: a build with CUDA, or the GPU.
func TestNoRing(t *testing.T) {
	_, one := newRing([]int{97, 98})
	_, several := joinRing(nil, 97, 0, 2)
	for _, err := range []error{one, several} {
		if err == nil || !strings.Contains(err.Error(), "make CUDA=1") && !strings.Contains(err.Error(), "no GPU number 97") {
			t.Errorf("GPUs that are not there: %v", err)
		}
	}
}
