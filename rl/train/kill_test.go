package train

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

const childVariable = "SSR_TRAIN_TEST_CHILD"

// TestMain is also the program that the kill test runs and kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		if err := killable(dir, true, 8*time.Millisecond); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// killable is a run whose resumes go through everything: a checkpoint only
// every third step, several updates a step, and a game with state.
func killable(dir string, resume bool, pause time.Duration) error {
	s := testSettings(40)
	s.CheckpointEvery, s.KeepCheckpoints = 3, 2
	s.Epochs, s.Minibatches = 2, 2
	p := &table{}
	g := &puzzle{policy: p, log: filepath.Join(dir, "log"), pause: pause}
	_, err := Train(context.Background(), Options{Settings: s, Dir: dir, Seed: 7, Resume: resume}, p, g)
	return err
}

// TestKill9 kills a trainer at random moments, resumes it, and holds what it
// left against a run that nobody disturbed.
func TestKill9(t *testing.T) {
	calm := t.TempDir()
	if err := killable(calm, false, 0); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const wanted = 25
	kills, lives := 0, 0
	for {
		lives++
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		fuse := time.Duration(5+rand.IntN(55)) * time.Millisecond
		if kills >= wanted {
			fuse = time.Minute
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("life %d: %v\n%s", lives, err, stderr.String())
			}
		case <-time.After(fuse):
			if kills >= wanted {
				cmd.Process.Kill()
				t.Fatalf("the last life did not end: %s", stderr.String())
			}
			kills++
			cmd.Process.Kill()
			<-ended
			continue
		}
		break
	}
	t.Logf("%d kills", kills)
	if kills < 20 {
		t.Errorf("only %d kills: the run is too short", kills)
	}
	if diff := cmp.Diff(metricsWithoutTimes(t, calm), metricsWithoutTimes(t, dir)); diff != "" {
		t.Errorf("metrics differ: %s", diff)
	}
	if diff := cmp.Diff(finalWeights(t, calm), finalWeights(t, dir)); diff != "" {
		t.Errorf("weights differ: %s", diff)
	}
	want, got := journaled(t, calm), journaled(t, dir)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("groups differ: %s", diff)
	}
	ended := map[string]bool{}
	for _, line := range readLines(t, filepath.Join(dir, "log")) {
		what, id, _ := strings.Cut(line, " ")
		if what == "start" && ended[id] {
			t.Errorf("group %s was played again after it had finished", id)
		}
		ended[id] = ended[id] || what == "end"
	}
	for id := range want {
		if _, ok := got[id]; !ok {
			t.Errorf("group %s was lost", id)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, checkpointsName))
	if err != nil || len(entries) != 2 || entries[1].Name() != "step-000040" {
		t.Errorf("checkpoints: %v, %v", entries, err)
	}
}

// metricsWithoutTimes are the lines of a run as bytes, with the times cut out.
func metricsWithoutTimes(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	for _, line := range readLines(t, filepath.Join(dir, metricsName)) {
		before, _, ok := strings.Cut(line, `,"seconds":`)
		if !ok {
			t.Fatalf("a line without times: %s", line)
		}
		out = append(out, before)
	}
	return out
}

func readLines(t *testing.T, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lines []string
	for s := bufio.NewScanner(f); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return lines
}

// sameRuns compares what two runs measured and the weights that they ended with.
func sameRuns(t *testing.T, a, b string) {
	t.Helper()
	if diff := cmp.Diff(metricsWithoutTimes(t, a), metricsWithoutTimes(t, b)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(finalWeights(t, a), finalWeights(t, b)); diff != "" {
		t.Error(diff)
	}
}

func finalWeights(t *testing.T, dir string) []byte {
	t.Helper()
	at, err := LastCheckpoint(dir)
	if err != nil {
		t.Fatal(err)
	}
	var p table
	if err := p.Load(Weights(at)); err != nil {
		t.Fatal(err)
	}
	return p.bits()
}

// journaled is every group of a run's journal as JSON, by step and ID.
func journaled(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := Trajectories(dir, func(step int, f Finished) error {
		key := fmt.Sprint(step, " ", f.Group.ID)
		if _, twice := out[key]; twice {
			return errors.New(key + " twice")
		}
		data, err := json.Marshal(f)
		out[key] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
