package train

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/rl"
	"github.com/ssr-go/ssr/rollout"
)

// Metrics is one line of metrics.jsonl. All of it but Seconds follows from the
// configuration and the seed where the game and the learner are deterministic. A
// nil figure means that there was nothing to measure.
type Metrics struct {
	Step int `json:"step"`
	// Epoch is the pass over the examples, in supervised training only.
	Epoch int `json:"epoch,omitempty"`
	UpdateMetrics
	*PlayMetrics
	Seconds Seconds `json:"seconds"`
}

// UpdateMetrics describe the optimizer steps of one training step. With several
// updates loss, norm, entropy and Objective are means over them.
type UpdateMetrics struct {
	// Version of the weights after the step; Updates applied in it.
	Version int64 `json:"version"`
	Updates int   `json:"updates"`
	// Skipped counts, over the run, updates given up for a non-finite loss or gradient.
	Skipped  int      `json:"skipped_updates"`
	LR       float64  `json:"lr"`
	Loss     *float64 `json:"loss"`
	GradNorm *float64 `json:"grad_norm"`
	// Entropy is the mean over trained tokens, in nats.
	Entropy *float64 `json:"entropy"`
	// LogprobGap is the largest |logprob now − logprob at sampling| in the first
	// update, that is on fresh data; 0 is the target.
	LogprobGap *float64 `json:"logprob_gap"`
	// Objective holds the objective's own, such as ratio_mean and clip_fraction.
	Objective map[string]float64 `json:"objective,omitempty"`
	// TrainedTokens and TrainedSequences are counted once, not per epoch.
	TrainedTokens    int `json:"trained_tokens"`
	TrainedSequences int `json:"trained_sequences"`
	MicroBatches     int `json:"micro_batches"`
}

// PlayMetrics describe the episodes of one training step.
type PlayMetrics struct {
	// SolveRate is the share of scored solver episodes with outcome "solved".
	SolveRate *float64 `json:"solve_rate"`
	// ValidRate is the share of injector episodes with outcome "valid". One whose
	// bug was valid counts also where it failed later, for want of a reward.
	ValidRate *float64 `json:"valid_rate"`
	// Refusals counts injector episodes by the check that refused them.
	Refusals map[string]int                `json:"refusals"`
	Roles    map[rollout.Role]*RoleMetrics `json:"roles"`
	Dropped  Dropped                       `json:"dropped"`
	// Failures counts episodes lost to infrastructure by kind.
	Failures map[string]int `json:"failures"`
	// SampledTokens and ObservedTokens are those of scored episodes.
	SampledTokens  int    `json:"sampled_tokens"`
	ObservedTokens int    `json:"observed_tokens"`
	Health         Health `json:"health"`
	// Counts are the game's own, such as "sandboxes".
	Counts map[string]float64 `json:"counts"`
}

// RoleMetrics describe the scored episodes of a role.
type RoleMetrics struct {
	Groups   int `json:"groups"`
	Episodes int `json:"episodes"`
	// RewardMean and RewardStd are over episodes, GroupStd is the mean over groups
	// of their rewards' deviation (population form).
	RewardMean float64 `json:"reward_mean"`
	RewardStd  float64 `json:"reward_std"`
	GroupStd   float64 `json:"group_std"`
	// LengthMean and LengthMax are in tokens, observations included.
	LengthMean float64        `json:"length_mean"`
	LengthMax  int            `json:"length_max"`
	TurnsMean  float64        `json:"turns_mean"`
	Outcomes   map[string]int `json:"outcomes"`
}

// Dropped counts what did not enter the update; see rl.Selected.
type Dropped struct {
	NoSpreadGroups int `json:"no_spread_groups"`
	Failed         int `json:"failed"`
	Cancelled      int `json:"cancelled"`
	Stale          int `json:"stale"`
	Masked         int `json:"masked"`
	Empty          int `json:"empty"`
}

// Seconds are wall-clock times of a step's phases: the only part of a line that
// differs between runs of one seed. After a resume they are those of the last
// attempt. Checkpoint is that of the last checkpoint before this step's end. What
// Options.Before takes is in none of them.
type Seconds struct {
	Play       float64 `json:"play"`
	Update     float64 `json:"update"`
	Checkpoint float64 `json:"checkpoint"`
}

const (
	outcomeSolved = "solved"
	outcomeValid  = "valid"
	refusedPrefix = "refused:"
)

// describePlay measures a step's groups. The order of its sums is that of IDs,
// not that in which episodes ended.
func describePlay(finished []Finished, sel rl.Selected) *PlayMetrics {
	m := &PlayMetrics{
		Refusals: map[string]int{}, Roles: map[rollout.Role]*RoleMetrics{}, Failures: map[string]int{}, Counts: map[string]float64{},
		Dropped: Dropped{sel.NoSpread, sel.Failed, sel.Cancelled, sel.Stale, sel.Masked, sel.Empty},
	}
	rewards := map[rollout.Role][]float64{}
	var all []*rollout.Trajectory
	unrewarded := 0 // valid injections that failed later
	for _, f := range sortedByID(finished) {
		for name, n := range f.Counts {
			m.Counts[name] += n
		}
		r := m.Roles[f.Group.Role]
		if r == nil {
			r = &RoleMetrics{Outcomes: map[string]int{}}
			m.Roles[f.Group.Role] = r
		}
		r.Groups++
		var group []float64
		for _, t := range sortedTrajectories(f.Group) {
			if t.Status == rollout.Failed {
				m.Failures[t.FailureKind()]++
				if t.Role == rollout.Injector && t.Outcome == outcomeValid {
					unrewarded++
				}
			}
			if t.Status != rollout.Scored {
				continue
			}
			all = append(all, t)
			group = append(group, t.Reward)
			m.addEpisode(r, t)
		}
		r.GroupStd += deviation(group)
		rewards[f.Group.Role] = append(rewards[f.Group.Role], group...)
	}
	for role, r := range m.Roles {
		r.RewardMean, r.RewardStd = mean(rewards[role]), deviation(rewards[role])
		r.GroupStd /= float64(r.Groups)
		r.LengthMean /= float64(max(1, r.Episodes))
		r.TurnsMean /= float64(max(1, r.Episodes))
	}
	m.SolveRate = m.outcomeRate(rollout.Solver, outcomeSolved, 0)
	m.ValidRate = m.outcomeRate(rollout.Injector, outcomeValid, unrewarded)
	m.Health = measureHealth(all)
	return m
}

func (m *PlayMetrics) addEpisode(r *RoleMetrics, t *rollout.Trajectory) {
	r.Episodes++
	r.Outcomes[t.Outcome]++
	r.LengthMean += float64(len(t.Tokens))
	r.LengthMax = max(r.LengthMax, len(t.Tokens))
	r.TurnsMean += float64(len(t.Turns))
	if check, ok := strings.CutPrefix(t.Outcome, refusedPrefix); ok {
		m.Refusals[check]++
	}
	n := sampledTokens(t)
	m.SampledTokens += n
	m.ObservedTokens += len(t.Tokens) - n
}

// outcomeRate is the share of a role's episodes with an outcome, of which more
// are not among the scored.
func (m *PlayMetrics) outcomeRate(role rollout.Role, outcome string, more int) *float64 {
	r := m.Roles[role]
	if r == nil || r.Episodes+more == 0 {
		return nil
	}
	rate := share(r.Outcomes[outcome]+more, r.Episodes+more)
	return &rate
}

func sampledTokens(t *rollout.Trajectory) int {
	n := 0
	for _, s := range t.Trained {
		if s {
			n++
		}
	}
	return n
}

func sortedByID(fs []Finished) []Finished {
	fs = slices.Clone(fs)
	slices.SortFunc(fs, func(a, b Finished) int { return cmp.Compare(a.Group.ID, b.Group.ID) })
	return fs
}

func sortedTrajectories(g *rollout.Group) []*rollout.Trajectory {
	ts := slices.Clone(g.Trajectories)
	slices.SortFunc(ts, func(a, b *rollout.Trajectory) int { return cmp.Compare(a.ID, b.ID) })
	return ts
}

// mean and deviation (population form) are 0 of nothing.
func mean(x []float64) float64 {
	var s float64
	for _, v := range x {
		s += v
	}
	return s / float64(max(1, len(x)))
}

func deviation(x []float64) float64 {
	m := mean(x)
	var s float64
	for _, v := range x {
		s += (v - m) * (v - m)
	}
	return math.Sqrt(s / float64(max(1, len(x))))
}

// metricsFile is metrics.jsonl.
type metricsFile struct{ file *appendFile }

// openMetrics opens the folder's file for the steps after step: lines of later
// ones, which a crash undid, and a torn end are cut off.
func openMetrics(dir string, step int) (*metricsFile, error) {
	path := filepath.Join(dir, metricsName)
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open metrics: %w", err)
	}
	kept := 0
	for line := range bytes.Lines(data) {
		var m struct {
			Step int `json:"step"`
		}
		if line[len(line)-1] != '\n' || json.Unmarshal(line, &m) != nil || m.Step > step {
			break
		}
		kept += len(line)
	}
	file, err := openAppend(path, int64(kept))
	if err != nil {
		return nil, fmt.Errorf("open metrics: %w", err)
	}
	return &metricsFile{file}, nil
}

func (m *metricsFile) write(line *Metrics) error {
	data, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("metrics of step %d: %w", line.Step, err)
	}
	if err := m.file.append(append(data, '\n')); err != nil {
		return fmt.Errorf("metrics of step %d: %w", line.Step, err)
	}
	return nil
}
