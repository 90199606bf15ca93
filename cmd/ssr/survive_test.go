package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ssr-go/ssr/rl/train"
	"github.com/ssr-go/ssr/rollout"
)

// Phases of a trainer's life, in the order in which they come.
type phase int

const (
	startUp phase = iota
	playing
	updating
	saving
)

func (p phase) String() string {
	return [...]string{"start-up", "play", "update", "checkpoint"}[p]
}

// killPlan is in which phase to kill, one life each, while the newest
// checkpoint is that of the step (-1: there is none yet). A kill in the phase
// saving may come after the checkpoint that it was meant for, and one in start-up that
// comes too late is for a later life.
func killPlan() map[int][]phase {
	return map[int][]phase{
		-1: {startUp, startUp, saving},
		0:  {playing, startUp, playing, playing, updating, startUp, saving},
		1:  {playing, startUp, playing, playing, updating, saving},
		2:  {playing, playing, startUp, playing, updating, updating, saving},
	}
}

// TestSurvival kills the trainer at random moments of all its phases, resumes
// it each time, and holds the run against one that nobody disturbed.
func TestSurvival(t *testing.T) {
	s := newStage(t)
	began := time.Now()
	s.play(t, "calm")
	s.survive(t, "killed", time.Since(began), killPlan(), 20)
	if diff := cmp.Diff(s.decided(t, "calm"), s.decided(t, "killed")); diff != "" {
		t.Errorf("the run differs from a calm one: %s", diff)
	}
	if diff := cmp.Diff(s.episodes(t, "calm"), s.episodes(t, "killed")); diff != "" {
		t.Errorf("episodes differ from those of a calm run: %s", diff)
	}
	s.nothingIsLeft(t)
}

// survive trains to the end through the kills of a plan, of which there are some in
// every phase and so many at least. calm is how long an undisturbed run takes.
func (s *stage) survive(t *testing.T, run string, calm time.Duration, plan map[int][]phase, least int, args ...string) {
	t.Helper()
	// A kill comes at most so long after the phase began, and at its end at the latest.
	most := map[phase]time.Duration{startUp: calm / 8, playing: calm / 6, updating: calm / 60, saving: 30 * time.Millisecond}
	began, kills, killed := time.Now(), 0, map[phase]int{}
	for {
		life := s.live(t, run, args...)
		at, survived := life.killAtRandom(t, plan, most)
		if survived {
			break
		}
		kills++
		killed[at]++
		s.noProcessIsLeft(t)
	}
	t.Logf("calm %v, with %d kills %v: %v", calm.Round(time.Second), kills, time.Since(began), killed)
	if kills < least {
		t.Errorf("only %d kills", kills)
	}
	for p := startUp; p <= saving; p++ {
		if killed[p] == 0 && (p != updating || s.learns) {
			t.Errorf("no kill in the phase %v", p)
		}
	}
}

// live starts a life of the trainer of a run.
func (s *stage) live(t *testing.T, run string, args ...string) *life {
	t.Helper()
	return s.begin(t, run, s.command(t, run, args...))
}

// begin starts a command on a run.
func (s *stage) begin(t *testing.T, run string, cmd *exec.Cmd) *life {
	t.Helper()
	l := &life{run: s.path(run), cmd: cmd, ended: make(chan struct{})}
	l.cmd.Stdout, l.cmd.Stderr = &l.output, &l.output
	l.cmd.WaitDelay = 10 * time.Second // for an orphan that holds the output open
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		l.err = l.cmd.Wait()
		close(l.ended)
	}()
	return l
}

// life is a process of the trainer.
type life struct {
	run    string
	cmd    *exec.Cmd
	output bytes.Buffer
	ended  chan struct{}
	err    error // once ended is closed
	played bool  // it has been seen playing
}

// killAtRandom takes the next of the plan's kills in this life, or sees it end.
func (l *life) killAtRandom(t *testing.T, plan map[int][]phase, most map[phase]time.Duration) (at phase, survived bool) {
	t.Helper()
	target, fuse, lit := startUp, time.Time{}, false
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.ended:
			if l.err != nil {
				t.Fatalf("%v\n%s", l.err, l.output.String())
			}
			return 0, true
		}
		now := l.phase()
		if !lit {
			step := newestCheckpoint(l.run)
			if len(plan[step]) == 0 || now < plan[step][0] {
				continue
			}
			target, lit = plan[step][0], true
			plan[step] = plan[step][1:]
			fuse = time.Now().Add(rand.N(most[target]))
		}
		if now == target && time.Now().Before(fuse) {
			continue
		}
		l.cmd.Process.Kill()
		<-l.ended
		if target == startUp && now != startUp {
			step := newestCheckpoint(l.run)
			plan[step] = append(plan[step], startUp)
		}
		return now, l.err == nil
	}
}

// phase reads from the files that the process has open what it is busy with.
func (l *life) phase() phase {
	var locked, metrics, journal bool
	fds := fmt.Sprintf("/proc/%d/fd/", l.cmd.Process.Pid)
	entries, _ := os.ReadDir(fds)
	for _, e := range entries {
		name, _ := os.Readlink(fds + e.Name())
		name, _ = filepath.Rel(l.run, name)
		locked = locked || name == "lock"
		metrics = metrics || name == "metrics.jsonl"
		journal = journal || strings.HasPrefix(name, "trajectories/")
	}
	switch aside, _ := filepath.Glob(l.run + "/checkpoints/aside-*"); {
	case !locked || !metrics:
		return startUp
	case journal:
		l.played = true
		return playing
	case len(aside) > 0:
		return saving
	case !l.played:
		return startUp
	}
	return updating
}

// newestCheckpoint is the step of a run's newest checkpoint, -1 without one.
func newestCheckpoint(run string) int {
	found, _ := filepath.Glob(run + "/checkpoints/step-*")
	if len(found) == 0 {
		return -1
	}
	var step int
	fmt.Sscanf(filepath.Base(found[len(found)-1]), "step-%d", &step)
	return step
}

// noProcessIsLeft waits until nothing runs any more that a killed trainer had
// started: what names the stage, or has its sandboxes' folder as a mount.
func (s *stage) noProcessIsLeft(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var left []string
		mount := "/" + filepath.Base(s.dir) + "/" + filepath.Base(s.state) + "/"
		processes, _ := filepath.Glob("/proc/[0-9]*")
		for _, p := range processes {
			args, _ := os.ReadFile(p + "/cmdline")
			mounts, _ := os.ReadFile(p + "/mountinfo")
			if bytes.Contains(args, []byte(s.dir)) || bytes.Contains(mounts, []byte(mount)) {
				left = append(left, fmt.Sprintf("%s %.300q", filepath.Base(p), args))
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes outlive their trainer: %q", left)
		}
	}
}

// nothingIsLeft expects no process, sandbox, or unfinished file of any life.
func (s *stage) nothingIsLeft(t *testing.T) {
	t.Helper()
	s.noProcessIsLeft(t)
	list := func(dir, keep string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			if keep == "" || !strings.HasPrefix(e.Name(), keep) {
				t.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
	list(s.state, "root-") // the system that all sandboxes see stays
	list(s.tmp, "")
	err := filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if path == s.state || path == s.path("quill") {
			return fs.SkipDir
		}
		if name := filepath.Base(path); strings.HasPrefix(name, ".") || strings.HasPrefix(name, "aside-") {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// episodes are what a run played and trained on, by ID. None may be there twice.
func (s *stage) episodes(t *testing.T, run string) map[string]played {
	t.Helper()
	all := map[string]played{}
	err := train.Trajectories(s.path(run), func(step int, f train.Finished) error {
		for _, e := range f.Group.Trajectories {
			if _, twice := all[e.ID]; twice {
				t.Errorf("run %s has episode %s twice", run, e.ID)
			}
			all[e.ID] = played{step, f.Group.ID, e.Status, e.Outcome, e.Reward, e.Tokens, e.Logprobs, e.Versions}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

type played struct {
	Step     int
	Group    string
	Status   rollout.Status
	Outcome  string
	Reward   float64
	Tokens   []int32
	Logprobs []float32
	Versions []int64
}
