package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// run is an open, locked run folder and the state of its last complete step.
type run struct {
	dir         string
	state       state
	checkpoints *checkpoints
	metrics     *metricsFile
	unlock      func() error
	saving      time.Duration // of the last checkpoint
}

// openRun locks dir and brings learner and game (nil in supervised training) to
// its newest checkpoint. A new run begins with a checkpoint of step 0, so that
// going on never depends on where the first weights came from.
func openRun(dir string, resume bool, keep int, rules string, l Learner, g Game) (_ *run, err error) {
	unlock, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	r := &run{dir: dir, unlock: unlock, state: state{Version: l.Version(), Rules: json.RawMessage(rules)}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.checkpoints, err = openCheckpoints(dir, keep); err != nil {
		return nil, err
	}
	names, err := r.checkpoints.names()
	if err != nil {
		return nil, err
	}
	if !resume && len(names) > 0 {
		return nil, fmt.Errorf("%s already holds a run; resume it, or choose another folder", dir)
	}
	loaded, ok, err := r.checkpoints.load(rules, l)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, trajectoriesName)); err == nil && !ok {
		return nil, fmt.Errorf("%s holds trajectories of a run whose checkpoints are gone; choose another folder", dir)
	}
	if ok {
		r.state = loaded
		if g != nil {
			if err := g.Restore(loaded.Game); err != nil {
				return nil, fmt.Errorf("restore the game: %w", err)
			}
		}
	}
	if r.metrics, err = openMetrics(dir, r.state.Step); err != nil {
		return nil, err
	}
	if !ok {
		return r, r.checkpoint(l, g)
	}
	return r, nil
}

// commit writes a step's line and takes its state as the current one.
func (r *run) commit(next state, m *Metrics) error {
	if err := r.metrics.write(m); err != nil {
		return err
	}
	next.Version = m.Version
	r.state = next
	return nil
}

// checkpoint saves the current state.
func (r *run) checkpoint(l Learner, g Game) error {
	began := time.Now()
	if g != nil {
		data, err := g.State()
		if err != nil {
			return fmt.Errorf("state of the game: %w", err)
		}
		r.state.Game = data
	}
	if err := r.checkpoints.save(r.state, l); err != nil {
		return err
	}
	r.saving = time.Since(began)
	return nil
}

func (r *run) summary() Summary {
	sum := Summary{Steps: r.state.Step, Version: r.state.Version, Skipped: r.state.Skipped}
	if names, err := r.checkpoints.names(); err == nil && len(names) > 0 {
		sum.Checkpoint = filepath.Join(r.checkpoints.dir, names[len(names)-1])
	}
	return sum
}

func (r *run) close() error {
	var err error
	if r.metrics != nil {
		err = r.metrics.file.Close()
	}
	return errors.Join(err, r.unlock())
}

// LastCheckpoint returns the folder of a run's newest checkpoint; its weights
// are in the folder Weights of it.
func LastCheckpoint(dir string) (string, error) {
	c := &checkpoints{dir: filepath.Join(dir, checkpointsName)}
	names, err := c.names()
	if err != nil {
		return "", fmt.Errorf("train: %w", err)
	}
	if len(names) == 0 {
		return "", fmt.Errorf("train: %s holds no checkpoint: %w", dir, os.ErrNotExist)
	}
	return filepath.Join(c.dir, names[len(names)-1]), nil
}

// Weights is the folder inside a checkpoint that the learner wrote.
func Weights(checkpoint string) string { return filepath.Join(checkpoint, weightsName) }
