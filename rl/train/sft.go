package train

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ssr-go/ssr/rl"
)

// Example is a sequence to imitate. Trained is parallel to Tokens and marks
// those whose cross-entropy counts; the first token never does.
type Example struct {
	Tokens  []int32 `json:"tokens"`
	Trained []bool  `json:"trained"`
}

// SFTSettings are what a configuration says about supervised fine-tuning. Start
// from DefaultSFTSettings.
type SFTSettings struct {
	Epochs int `json:"epochs" yaml:"epochs"`
	// BatchSize is the number of examples of an update, TokenBudget that of the
	// tokens of a micro-batch.
	BatchSize   int   `json:"batch_size" yaml:"batch_size"`
	TokenBudget int   `json:"token_budget" yaml:"token_budget"`
	Optimizer   AdamW `json:"optimizer" yaml:"optimizer"`
	// Schedule's Total, where 0, is the number of updates.
	Schedule Schedule `json:"schedule" yaml:"schedule"`
	// CheckpointEvery is a number of updates; 0 means at the end of every epoch.
	CheckpointEvery int `json:"checkpoint_every" yaml:"checkpoint_every"`
	KeepCheckpoints int `json:"keep_checkpoints" yaml:"keep_checkpoints"`
	MaxSkipped      int `json:"max_skipped" yaml:"max_skipped"`
}

// DefaultSFTSettings suit a small model trained from scratch.
func DefaultSFTSettings() SFTSettings {
	opt := DefaultAdamW()
	opt.LR, opt.Clip = 1e-3, 1
	return SFTSettings{
		Epochs: 3, BatchSize: 32, TokenBudget: 8192, Optimizer: opt,
		Schedule: Schedule{Kind: CosineLR, Warmup: 10, Floor: 0.1}, KeepCheckpoints: 1, MaxSkipped: 3,
	}
}

// SFTOptions are everything that SFT is told; see Options for what is not said here.
type SFTOptions struct {
	SFTSettings
	Dir     string
	Seed    uint64
	Resume  bool
	OnEvent func(Event)
	// AfterEpoch, where not nil, is called when an epoch (the first is 1) is
	// complete, and after a resume at that point once more; it may end training.
	AfterEpoch func(ctx context.Context, epoch int) (stop bool, err error)
}

// SFT fits the learner to examples by cross-entropy, a mean over the trained
// tokens of each update. Every epoch visits all examples once in an order drawn
// from the seed. Interrupting and resuming work as in Train; the examples must be
// the same.
func SFT(ctx context.Context, o SFTOptions, learner Learner, examples []Example) (sum Summary, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("sft: %w", err)
		}
	}()
	if err := errors.Join(o.SFTSettings.Check(), checkExamples(examples)); err != nil {
		return sum, err
	}
	perEpoch, total := o.updates(len(examples))
	if o.Schedule.Total == 0 {
		o.Schedule.Total = total
		o.Schedule.Warmup = min(o.Schedule.Warmup, total-1)
	}
	loss, err := rl.Defaults("sft")
	if err != nil {
		return sum, err
	}
	u, err := newUpdater(learner, "sft", loss, updateSettings{o.TokenBudget, o.Optimizer, o.Schedule, o.MaxSkipped})
	if err != nil {
		return sum, err
	}
	rules, err := o.fingerprint(len(examples))
	if err != nil {
		return sum, err
	}
	r, err := openRun(o.Dir, o.Resume, o.KeepCheckpoints, rules, learner, nil)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	every := cmp.Or(o.CheckpointEvery, perEpoch)
	emit := o.OnEvent
	if emit == nil {
		emit = func(Event) {}
	}
	saved := r.state.Step // an open run has a checkpoint
	save := func() error {
		if saved == r.state.Step {
			return nil
		}
		saved = r.state.Step
		return r.checkpoint(learner, nil)
	}
	for {
		done := r.state.Step
		if done > 0 && done%perEpoch == 0 && o.AfterEpoch != nil {
			stop, err := o.AfterEpoch(ctx, done/perEpoch)
			if err != nil {
				return r.summary(), fmt.Errorf("after epoch %d: %w", done/perEpoch, err)
			}
			if stop {
				break
			}
		}
		if done >= total {
			break
		}
		if err := o.update(ctx, r, u, examples, done/perEpoch, done%perEpoch, emit); err != nil {
			return r.summary(), fmt.Errorf("update %d of %d: %w", done+1, total, err)
		}
		if r.state.Step%every == 0 {
			if err := save(); err != nil {
				return r.summary(), err
			}
		}
	}
	if err := save(); err != nil {
		return r.summary(), err
	}
	emit(Event{Phase: PhaseDone, Step: r.state.Step, Steps: total})
	return r.summary(), nil
}

// update trains on batch k of an epoch.
func (o SFTOptions) update(ctx context.Context, r *run, u *updater, examples []Example, epoch, k int, emit func(Event)) error {
	_, total := o.updates(len(examples))
	if err := context.Cause(ctx); err != nil {
		return err
	}
	began := time.Now()
	order := shuffled(len(examples), o.Seed, uint64(epoch))
	var seqs []rl.Sequence
	for _, i := range order[k*o.BatchSize : min((k+1)*o.BatchSize, len(examples))] {
		seqs = append(seqs, rl.Sequence{ID: fmt.Sprintf("%09d", i), Tokens: examples[i].Tokens, Trained: examples[i].Trained})
	}
	next := r.state
	next.Step++
	m := &Metrics{Step: next.Step, Epoch: epoch + 1}
	var err error
	if m.UpdateMetrics, err = u.run(ctx, &next, [][]rl.Sequence{seqs}); err != nil {
		return err
	}
	m.count(seqs)
	m.Seconds = Seconds{Update: time.Since(began).Seconds(), Checkpoint: r.saving.Seconds()}
	if err := r.commit(next, m); err != nil {
		return err
	}
	emit(Event{Phase: PhaseStep, Step: next.Step, Steps: total, Metrics: m})
	return nil
}

// updates is the number of them in an epoch, and in all.
func (s SFTSettings) updates(examples int) (perEpoch, total int) {
	perEpoch = (examples + s.BatchSize - 1) / max(1, s.BatchSize)
	return perEpoch, perEpoch * s.Epochs
}

// Check refuses settings that SFT would refuse, with all of its reasons.
func (s SFTSettings) Check() error {
	var every error
	if s.CheckpointEvery < 0 {
		every = fmt.Errorf("checkpoint_every is %d; it is a number of updates, 0 for the end of every epoch", s.CheckpointEvery)
	}
	if s.Schedule.Total == 0 {
		s.Schedule.Total = s.Schedule.Warmup + 1 // SFT fits the warm-up into the updates that there are
	}
	return errors.Join(every, positive("epochs", s.Epochs), positive("batch_size", s.BatchSize), positive("token_budget", s.TokenBudget),
		positive("keep_checkpoints", s.KeepCheckpoints), positive("max_skipped", s.MaxSkipped), s.Optimizer.check(), s.Schedule.check())
}

func checkExamples(examples []Example) error {
	if len(examples) == 0 {
		return errors.New("there are no examples")
	}
	for i, e := range examples {
		if len(e.Tokens) == 0 || len(e.Tokens) != len(e.Trained) {
			return fmt.Errorf("example %d has %d tokens and %d marks; there must be as many, and one at least", i, len(e.Tokens), len(e.Trained))
		}
	}
	return nil
}

func (o SFTOptions) fingerprint(examples int) (string, error) {
	s := o.SFTSettings
	s.CheckpointEvery, s.KeepCheckpoints, s.MaxSkipped = 0, 0, 0
	data, err := json.Marshal(struct {
		Seed     uint64 `json:"seed"`
		Examples int    `json:"examples"`
		SFTSettings
	}{o.Seed, examples, s})
	return string(data), err
}
