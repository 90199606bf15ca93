package train

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rollout"
)

// Train plays and learns until Settings.Steps steps are done, ctx ends, or the
// guard or too many skipped updates stop it. Each step: play; journal every
// group as it finishes; compute advantages group by group; update; write one
// line of metrics; checkpoint.
//
// A run that was killed goes on with Options.Resume: the steps after the last
// checkpoint are taken again from the groups in the journal, and only what the
// journal lacks is played. With a deterministic game and learner its metrics
// (apart from times) and weights are those of a run that was never interrupted.
func Train(ctx context.Context, o Options, learner Learner, game Game) (sum Summary, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("train: %w", err)
		}
	}()
	o.Schedule = o.Settings.schedule()
	if err := o.Settings.Check(); err != nil {
		return sum, fmt.Errorf("settings: %w", err)
	}
	estimator, credit, err := o.estimator()
	if err != nil {
		return sum, err
	}
	if o.Estimator != nil {
		estimator = o.Estimator
	}
	u, err := newUpdater(learner, o.Objective, o.Loss, updateSettings{o.TokenBudget, o.Optimizer, o.Schedule, o.MaxSkipped})
	if err != nil {
		return sum, err
	}
	rules, err := o.fingerprint(o.Seed)
	if err != nil {
		return sum, fmt.Errorf("settings: %w", err)
	}
	r, err := openRun(o.Dir, o.Resume, o.KeepCheckpoints, rules, learner, game)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	l := &loop{
		Options: o, run: r, learner: learner, game: game, updater: u,
		selection: rl.Selection{Advantage: estimator, TurnCredit: credit, MaxLag: o.MaxLag, MaskOutcomes: o.MaskOutcomes},
	}
	for r.state.Step < o.Steps {
		step := r.state.Step + 1
		if err := l.step(ctx); err != nil {
			return r.summary(), fmt.Errorf("step %d: %w", step, err)
		}
	}
	l.emit(Event{Phase: PhaseDone, Step: r.state.Step, Steps: o.Steps})
	return r.summary(), nil
}

type loop struct {
	Options
	*run
	learner   Learner
	game      Game
	updater   *updater
	selection rl.Selection
	mu        sync.Mutex // orders calls of OnEvent
}

func (l *loop) emit(e Event) {
	if l.OnEvent == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.OnEvent(e)
}

// step takes the step after state.Step, which it raises at the end.
func (l *loop) step(ctx context.Context) error {
	step := l.state.Step + 1
	l.emit(Event{Phase: PhasePlay, Step: step, Steps: l.Steps}) // the first group may take long
	if l.Before != nil {
		if err := l.Before(ctx, step); err != nil {
			return err
		}
	}
	began := time.Now()
	finished, err := l.play(ctx, step)
	if err != nil {
		return fmt.Errorf("play: %w", err)
	}
	played := time.Now()

	l.emit(Event{Phase: PhaseUpdate, Step: step, Steps: l.Steps})
	groups := make([]*rollout.Group, len(finished))
	for i, f := range finished {
		groups[i] = f.Group
	}
	next := l.state
	stateful, _ := l.selection.Advantage.(rl.Stateful)
	if stateful != nil {
		stateful.Restore(l.state.Baselines)
	}
	selected, err := rl.Select(groups, l.learner.Version(), l.selection)
	if err != nil {
		return err
	}
	if stateful != nil {
		next.Baselines = stateful.State()
	}
	m := Metrics{Step: step, PlayMetrics: describePlay(finished, selected)}
	l.updater.record = nil
	if l.RecordBatches > 0 && step%l.RecordBatches == 0 {
		l.updater.record = func(r *rl.Recorded) error { return recordBatch(l.dir, step, r) }
	}
	m.UpdateMetrics, err = l.updater.run(ctx, &next, minibatches(selected.Sequences, l.Epochs, l.Minibatches, l.Seed, step))
	if err != nil {
		return err
	}
	m.count(selected.Sequences)
	m.Seconds = Seconds{Play: played.Sub(began).Seconds(), Update: time.Since(played).Seconds(), Checkpoint: l.saving.Seconds()}

	next.Step = step
	complaint := l.Guard.complaint(&m)
	if complaint == "" {
		next.Unhealthy = 0
	} else {
		next.Unhealthy++
	}
	if err := l.commit(next, &m); err != nil {
		return err
	}
	l.emit(Event{Phase: PhaseStep, Step: step, Steps: l.Steps, Groups: len(finished), Metrics: &m})
	if l.Guard.Patience > 0 && next.Unhealthy >= l.Guard.Patience {
		return fmt.Errorf("%w: in %d steps in a row %s; go back to an earlier checkpoint with a lower learning rate", ErrDegenerate, next.Unhealthy, complaint)
	}
	if step%l.CheckpointEvery == 0 || step == l.Steps {
		l.emit(Event{Phase: PhaseCheckpoint, Step: step, Steps: l.Steps})
		return l.checkpoint(l.learner, l.game)
	}
	return nil
}

// count records what was trained on.
func (m *UpdateMetrics) count(seqs []rl.Sequence) {
	m.TrainedSequences = len(seqs)
	for _, s := range seqs {
		for _, trained := range s.Trained[1:] { // nothing predicts the first token
			if trained {
				m.TrainedTokens++
			}
		}
	}
}

// play returns the step's finished groups, the journaled ones first.
func (l *loop) play(ctx context.Context, step int) (_ []Finished, err error) {
	j, records, err := openJournal(l.dir, step)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	t := &tally{loop: l, journal: j, seen: map[string]bool{}, event: Event{Phase: PhasePlay, Step: step, Steps: l.Steps}}
	for _, f := range records {
		t.add(f)
	}
	err = l.game.Play(ctx, step, latest(records), func(f Finished) error { return t.finish(ctx, f) })
	all, ferr := t.end()
	if err == nil {
		err = ferr
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	return latest(all), err
}

// tally collects a step's finished groups from the game's goroutines.
type tally struct {
	loop    *loop
	journal *journal

	mu      sync.Mutex
	records []Finished
	seen    map[string]bool
	event   Event
	ended   bool
	err     error // of the first group that could not be recorded
}

var errPlayEnded = errors.New("a group finished after Play had returned")

func (t *tally) finish(ctx context.Context, f Finished) error {
	if err := checkFinished(f); err != nil {
		return t.fail(err)
	}
	if err := context.Cause(ctx); err != nil && interrupted(f.Group) {
		return err // to be played again on resume
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return errPlayEnded
	}
	if err := t.journal.record(f); err != nil {
		t.err = errors.Join(t.err, err)
		return err
	}
	t.add(f)
	return nil
}

func (t *tally) fail(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = errors.Join(t.err, err)
	return err
}

func (t *tally) add(f Finished) {
	t.records = append(t.records, f)
	if t.seen[f.Group.ID] {
		return // replaces an earlier record
	}
	t.seen[f.Group.ID] = true
	t.event.Groups++
	t.event.Episodes += len(f.Group.Trajectories)
	for _, tr := range f.Group.Trajectories {
		t.event.Tokens += sampledTokens(tr)
	}
	t.loop.emit(t.event)
}

func (t *tally) end() ([]Finished, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	return t.records, t.err
}

func checkFinished(f Finished) error {
	if f.Group == nil || f.Group.ID == "" {
		return errors.New("the game finished a group without an ID")
	}
	for _, t := range f.Group.Trajectories {
		if t.Status != rollout.Scored && t.Status != rollout.Failed && t.Status != rollout.Cancelled {
			return fmt.Errorf("group %s finished, but its trajectory %s has status %q", f.Group.ID, t.ID, t.Status)
		}
	}
	return nil
}

func interrupted(g *rollout.Group) bool {
	for _, t := range g.Trajectories {
		if t.Status == rollout.Cancelled {
			return true
		}
	}
	return false
}
