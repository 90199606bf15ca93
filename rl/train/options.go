package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ssr-go/ssr/rl"
)

// Settings are what a run's configuration says about training. Start from
// DefaultSettings: a zero means zero.
type Settings struct {
	// Steps is the number of training steps of the whole run.
	Steps int `json:"steps" yaml:"steps"`
	// Objective names an objective of package rl, Loss its settings.
	Objective string      `json:"objective" yaml:"objective"`
	Loss      rl.Settings `json:"loss" yaml:"loss"`
	// Advantage names an estimator of package rl.
	Advantage string `json:"advantage" yaml:"advantage"`
	// AdvantageSettings, where not nil, stand in the place of the named estimator's.
	AdvantageSettings *rl.AdvantageSettings `json:"advantage_settings,omitempty" yaml:"advantage_settings,omitempty"`
	// MaxLag discards trajectories older than that many versions; negative: none.
	MaxLag int64 `json:"max_lag" yaml:"max_lag"`
	// MaskOutcomes are outcomes whose trajectories are not trained on.
	MaskOutcomes []string `json:"mask_outcomes,omitempty" yaml:"mask_outcomes,omitempty"`
	// TokenBudget bounds the tokens of a micro-batch.
	TokenBudget int `json:"token_budget" yaml:"token_budget"`
	// Epochs passes over a step's data, each in Minibatches updates. With one of
	// each every update is on-policy.
	Epochs      int `json:"epochs" yaml:"epochs"`
	Minibatches int `json:"minibatches" yaml:"minibatches"`
	// Optimizer's LR is the peak of Schedule.
	Optimizer AdamW `json:"optimizer" yaml:"optimizer"`
	// Schedule's Total, where 0, is the number of updates that Steps make.
	Schedule Schedule `json:"schedule" yaml:"schedule"`
	// CheckpointEvery is a number of steps; the last KeepCheckpoints are kept.
	CheckpointEvery int `json:"checkpoint_every" yaml:"checkpoint_every"`
	KeepCheckpoints int `json:"keep_checkpoints" yaml:"keep_checkpoints"`
	// MaxSkipped updates in a row with a non-finite loss or gradient stop the run.
	MaxSkipped int `json:"max_skipped" yaml:"max_skipped"`
	// RecordBatches writes the batch of the first update of every so many steps to
	// the run's folder, for ssr objective to read; 0 means none.
	RecordBatches int `json:"record_batches,omitempty" yaml:"record_batches"`
	// Guard stops a policy that degenerates.
	Guard Guard `json:"guard" yaml:"guard"`
}

// Rescores says whether a step's tokens are scored before its first update: where the
// ratios of several are taken against the policy that began them.
func (s Settings) Rescores() bool {
	return s.Loss.Anchor == rl.AnchorOld && s.Epochs*s.Minibatches > 1
}

// NeedsReference says whether the objective reads a frozen reference policy; false where
// Check refuses it.
func (s Settings) NeedsReference() bool {
	o, err := rl.New(s.Objective, s.Loss)
	return err == nil && rl.NeedsReference(o)
}

// DefaultSettings are the paper's where it has any (section 3 and, for the
// gradient clip, its sibling on code world models).
func DefaultSettings() Settings {
	loss, err := rl.Defaults("clip")
	if err != nil {
		panic(err) // registered by package rl itself
	}
	return Settings{
		Steps:           150,
		Objective:       "clip",
		Loss:            loss,
		Advantage:       "group_mean",
		MaxLag:          8,
		TokenBudget:     131072,
		Epochs:          1,
		Minibatches:     1,
		Optimizer:       DefaultAdamW(),
		Schedule:        Schedule{Kind: ConstantLR, Warmup: 30},
		CheckpointEvery: 1,
		KeepCheckpoints: 3,
		MaxSkipped:      3,
		Guard:           Guard{MaxRepetition: 0.9, MaxNonPrintable: 0.3, Patience: 3},
	}
}

// DefaultAdamW are the optimizer's settings by default.
func DefaultAdamW() AdamW {
	return AdamW{LR: 3e-6, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, Clip: 0.1}
}

// Options are everything that Train is told.
type Options struct {
	Settings
	// Dir is the run's folder.
	Dir string
	// Seed orders minibatches.
	Seed uint64
	// Estimator, where not nil, is one of the caller's own: it stands in the place of
	// what Advantage names, but for how that falls to turns.
	Estimator rl.Estimator
	// Resume goes on with the run in Dir, where there is one. Without it a folder
	// that holds a run is refused.
	Resume bool
	// Before, where not nil, is called ahead of each step, with the weights that it will
	// play, for instance to measure them. Its error ends the run.
	Before func(ctx context.Context, step int) error
	// OnEvent, where not nil, is told about progress. Calls never overlap; they
	// hold up the run, so it should return at once.
	OnEvent func(Event)
}

// Check refuses settings that Train would refuse, with all of its reasons.
func (s Settings) Check() error {
	errs := []error{positive("steps", s.Steps), positive("token_budget", s.TokenBudget), positive("epochs", s.Epochs),
		positive("minibatches", s.Minibatches), positive("checkpoint_every", s.CheckpointEvery),
		positive("keep_checkpoints", s.KeepCheckpoints), positive("max_skipped", s.MaxSkipped),
		s.Optimizer.check(), s.schedule().check(), s.Guard.check()}
	if s.RecordBatches < 0 {
		errs = append(errs, fmt.Errorf("record_batches is %d; it is a number of steps, 0 for none", s.RecordBatches))
	}
	_, err := rl.New(s.Objective, s.Loss)
	_, _, err2 := s.estimator()
	return errors.Join(append(errs, err, err2)...)
}

// schedule is the one given, over all updates of the run where it has no total.
func (s Settings) schedule() Schedule {
	if s.Schedule.Total == 0 && s.Schedule.Kind != ConstantLR {
		s.Schedule.Total = s.Steps * s.Epochs * s.Minibatches
	}
	return s.Schedule
}

// estimator is the named one, with its settings or these, and its credit of turns.
func (s Settings) estimator() (rl.Estimator, rl.TurnCredit, error) {
	preset, err := rl.LookupAdvantage(s.Advantage)
	if err != nil {
		return nil, rl.TurnCredit{}, err
	}
	settings := preset.Defaults
	if s.AdvantageSettings != nil {
		settings = *s.AdvantageSettings
	}
	e, err := settings.Estimator()
	return e, settings.TurnCredit, err
}

func positive(name string, n int) error {
	if n <= 0 {
		return fmt.Errorf("%s is %d; it must be positive", name, n)
	}
	return nil
}

func (o AdamW) check() error {
	switch {
	case !(o.LR >= 0), !(o.WeightDecay >= 0), !(o.Clip >= 0), !(o.Eps > 0):
		return fmt.Errorf("optimizer: lr %g, weight_decay %g, clip %g must not be negative and eps %g must be positive", o.LR, o.WeightDecay, o.Clip, o.Eps)
	case !(o.Beta1 >= 0 && o.Beta1 < 1), !(o.Beta2 >= 0 && o.Beta2 < 1):
		return fmt.Errorf("optimizer: beta1 %g and beta2 %g must lie in [0, 1)", o.Beta1, o.Beta2)
	}
	return nil
}

// fingerprint is the part of the settings that decides what a step computes: a
// run can be extended, but not resumed under other rules than it began with.
func (s Settings) fingerprint(seed uint64) (string, error) {
	s.Steps, s.CheckpointEvery, s.KeepCheckpoints, s.MaxSkipped, s.RecordBatches, s.Guard = 0, 0, 0, 0, 0, Guard{}
	data, err := json.Marshal(struct {
		Seed uint64 `json:"seed"`
		Settings
	}{seed, s})
	return string(data), err
}

// Phase is what a run is busy with.
type Phase string

const (
	PhasePlay       Phase = "play"
	PhaseUpdate     Phase = "update"
	PhaseCheckpoint Phase = "checkpoint"
	PhaseStep       Phase = "step" // a step is complete; Event.Metrics is set
	PhaseDone       Phase = "done"
)

// Event is a sign of progress.
type Event struct {
	Phase Phase
	// Step is the current one of Steps.
	Step, Steps int
	// Groups, Episodes and Tokens (sampled) have finished in this step so far.
	Groups, Episodes, Tokens int
	// Metrics of the step, in PhaseStep (supervised steps have few).
	Metrics *Metrics
}

// Summary is how a run ended.
type Summary struct {
	// Steps is the number of steps done, those before a resume included.
	Steps int
	// Version of the weights; Skipped updates over the run.
	Version int64
	Skipped int
	// Checkpoint is the folder of the last checkpoint; its weights are in "weights".
	Checkpoint string
}
