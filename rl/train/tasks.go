package train

import (
	"context"
	"fmt"

	"github.com/ssr-go/ssr/rollout"
)

// TaskGame is a Game of tasks that depend neither on each other nor on earlier
// steps: all that a world of one's own needs where it is a rollout.Env with a score.
type TaskGame struct {
	Runner *rollout.Runner
	// Tasks are the episodes of a round of a step; those of one Task.Group are a
	// group. Round 0 is all there is unless Resample is positive. Asked again it
	// must give the same tasks, and no ID twice in a run.
	Tasks func(step, round int) []rollout.Task
	// Resample is dynamic sampling (DAPO, arXiv 2503.14476, section 3.2) with a
	// bound on its rounds: for each group of a round whose rewards have no spread
	// the next round plays one of its groups. Those are counted as
	// "resampled_groups".
	Resample int
}

// Play implements Game.
func (g *TaskGame) Play(ctx context.Context, step int, done []Finished, finish func(Finished) error) error {
	have := map[string]*rollout.Group{}
	for _, f := range done {
		have[f.Group.ID] = f.Group
	}
	flat := 0
	for round := 0; round == 0 || round <= g.Resample && flat > 0; round++ {
		groups, err := grouped(g.Tasks(step, round))
		if err != nil {
			return err
		}
		var counts map[string]float64
		if round > 0 {
			groups, counts = groups[:min(flat, len(groups))], map[string]float64{"resampled_groups": 1}
		}
		err = g.round(ctx, groups, have, func(group *rollout.Group) error {
			return finish(Finished{Group: group, Counts: counts})
		})
		if err != nil {
			return err
		}
		flat = 0
		for _, tasks := range groups {
			if !have[tasks[0].Group].HasSpread() {
				flat++
			}
		}
	}
	return nil
}

// grouped are tasks by group, in the order of their first ones.
func grouped(tasks []rollout.Task) (groups [][]rollout.Task, err error) {
	at := map[string]int{}
	for _, t := range tasks {
		k, ok := at[t.Group]
		if !ok {
			k = len(groups)
			at[t.Group] = k
			groups = append(groups, nil)
		}
		groups[k] = append(groups[k], t)
		if first := groups[k][0]; t.Group == "" || t.Role != first.Role {
			return nil, fmt.Errorf("task %s of group %q and role %s: a task needs a group, and a group has one role; %s has %s", t.ID, t.Group, t.Role, first.ID, first.Role)
		}
	}
	return groups, nil
}

// round plays the groups that are not in have, and adds them.
func (g *TaskGame) round(ctx context.Context, groups [][]rollout.Task, have map[string]*rollout.Group, finish func(*rollout.Group) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var left []rollout.Task
	playing := map[string]*rollout.Group{}
	place := map[string]int{} // of a trajectory in its group
	missing := map[string]int{}
	for _, tasks := range groups {
		id := tasks[0].Group
		if have[id] != nil {
			continue
		}
		left = append(left, tasks...)
		playing[id] = &rollout.Group{ID: id, Role: tasks[0].Role, Trajectories: make([]*rollout.Trajectory, len(tasks))}
		missing[id] = len(tasks)
		for k, t := range tasks {
			place[t.ID] = k
		}
	}
	return g.Runner.Run(ctx, left, func(t *rollout.Trajectory) {
		group := playing[t.Group]
		group.Trajectories[place[t.ID]] = t
		if missing[t.Group]--; missing[t.Group] > 0 {
			return
		}
		have[t.Group] = group
		if ctx.Err() != nil && interrupted(group) {
			return // to be played again on resume
		}
		if err := finish(group); err != nil {
			cancel(fmt.Errorf("record group %s: %w", group.ID, err))
		}
	})
}

// State implements Game: there is none.
func (g *TaskGame) State() ([]byte, error) { return nil, nil }

// Restore implements Game.
func (g *TaskGame) Restore([]byte) error { return nil }
