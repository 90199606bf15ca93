package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// state is what a checkpoint holds beside the learner's own: everything the
// next step depends on, so that it can be taken again from here. It holds
// nothing that was measured: a run's seed decides it to the last byte.
type state struct {
	Step    int   `json:"step"`
	Version int64 `json:"version"`
	// Updates applied (the schedule's clock) and skipped, in all and in a row.
	Updates      int `json:"updates"`
	Skipped      int `json:"skipped"`
	SkippedInRow int `json:"skipped_in_row"`
	// Unhealthy counts steps in a row that the guard complained about.
	Unhealthy int `json:"unhealthy"`
	// Baselines are what the advantage estimator carries from step to step.
	Baselines map[string]float64 `json:"baselines,omitempty"`
	// Rules is the fingerprint of the settings the run began with.
	Rules json.RawMessage `json:"rules"`
	// Game is the game's state after Step.
	Game []byte `json:"game,omitempty"`
}

const (
	stateName   = "state.json"
	weightsName = "weights"
	asidePrefix = "aside-" // unfinished or being removed; never read
)

// checkpoints is the folder of that name. A checkpoint appears under its name
// by a rename when all of it is durable, and leaves it by a rename before any of
// it is removed: what has a name is whole.
type checkpoints struct {
	dir  string
	keep int
}

func openCheckpoints(dir string, keep int) (*checkpoints, error) {
	c := &checkpoints{dir: filepath.Join(dir, checkpointsName), keep: keep}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	leftovers, err := entries(c.dir, asidePrefix, "")
	for _, name := range leftovers {
		err = errors.Join(err, os.RemoveAll(filepath.Join(c.dir, name)))
	}
	if err != nil {
		return nil, fmt.Errorf("clear unfinished checkpoints: %w", err)
	}
	return c, nil
}

// names lists the checkpoints, oldest first.
func (c *checkpoints) names() ([]string, error) {
	names, err := entries(c.dir, stepPrefix, "")
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", err)
	}
	return names, nil
}

func (c *checkpoints) path(step int) string {
	return filepath.Join(c.dir, fmt.Sprintf(stepPattern, step))
}

// save writes a checkpoint and removes those that are too old.
func (c *checkpoints) save(st state, l Learner) error {
	aside := filepath.Join(c.dir, asidePrefix+fmt.Sprintf(stepPattern, st.Step))
	if err := c.write(aside, st, l); err != nil {
		return fmt.Errorf("checkpoint of step %d: %w", st.Step, errors.Join(err, os.RemoveAll(aside)))
	}
	names, err := c.names()
	if err != nil {
		return err
	}
	for _, name := range names[:max(0, len(names)-c.keep)] {
		gone := filepath.Join(c.dir, asidePrefix+name)
		if err := errors.Join(os.Rename(filepath.Join(c.dir, name), gone), os.RemoveAll(gone)); err != nil {
			return fmt.Errorf("remove old checkpoint: %w", err)
		}
	}
	return nil
}

func (c *checkpoints) write(aside string, st state, l Learner) error {
	weights := filepath.Join(aside, weightsName)
	if err := os.MkdirAll(weights, 0o755); err != nil {
		return err
	}
	if err := l.Save(weights); err != nil {
		return err
	}
	data, err := json.MarshalIndent(st, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(aside, stateName), data, 0o644); err != nil {
		return err
	}
	if err := syncTree(aside); err != nil {
		return err
	}
	if err := os.Rename(aside, c.path(st.Step)); err != nil {
		return err
	}
	return syncPath(c.dir)
}

// load restores the newest checkpoint into the learner; false when there is none.
func (c *checkpoints) load(rules string, l Learner) (st state, ok bool, err error) {
	names, err := c.names()
	if err != nil || len(names) == 0 {
		return state{}, false, err
	}
	dir := filepath.Join(c.dir, names[len(names)-1])
	data, err := os.ReadFile(filepath.Join(dir, stateName))
	if err != nil {
		return state{}, false, fmt.Errorf("read checkpoint: %w", err)
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return state{}, false, fmt.Errorf("read checkpoint %s: %w", dir, err)
	}
	if changed := differences(st.Rules, []byte(rules)); len(changed) > 0 {
		return state{}, false, fmt.Errorf("the run in %s began under other settings: %s; resume it with those, or start a new run",
			filepath.Dir(c.dir), strings.Join(changed, ", "))
	}
	if err := l.Load(filepath.Join(dir, weightsName)); err != nil {
		return state{}, false, fmt.Errorf("load checkpoint %s: %w", dir, err)
	}
	if v := l.Version(); v != st.Version {
		return state{}, false, fmt.Errorf("checkpoint %s is of version %d, its weights say %d", dir, st.Version, v)
	}
	return st, true, nil
}

// differences names the top-level settings in which two rules differ.
func differences(was, is []byte) []string {
	var a, b map[string]any
	if json.Unmarshal(was, &a) != nil || json.Unmarshal(is, &b) != nil {
		return []string{"unreadable rules"}
	}
	var names []string
	for name := range b {
		x, _ := json.Marshal(a[name])
		y, _ := json.Marshal(b[name])
		if string(x) != string(y) {
			names = append(names, fmt.Sprintf("%s was %s and is %s", name, x, y))
		}
	}
	for name := range a {
		if _, ok := b[name]; !ok {
			names = append(names, name+" is gone")
		}
	}
	slices.Sort(names)
	return names
}
