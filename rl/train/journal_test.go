package train

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/ssr-go/ssr/rollout"
)

func record(id string, reward float64) Finished {
	t := &rollout.Trajectory{ID: id + "-0", Group: id, Role: rollout.Solver, Status: rollout.Scored, Reward: reward, Outcome: "solved"}
	t.Append([]int32{1, 2}, nil, nil)
	t.Append([]int32{3}, []float32{-0.1}, []int64{4})
	return Finished{Group: &rollout.Group{ID: id, Role: rollout.Solver, Trajectories: []*rollout.Trajectory{t}}, Counts: map[string]float64{"sandboxes": 2}}
}

// TestJournalCutAnywhere cuts a journal at every byte: what was whole is read,
// and what is recorded next follows it.
func TestJournalCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	j, _, err := openJournal(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	var all []Finished
	var ends []int64
	for k := range 3 {
		f := record(fmt.Sprint("g", k), float64(k)+0.1)
		if err := j.record(f); err != nil {
			t.Fatal(err)
		}
		all, ends = append(all, f), append(ends, j.file.size)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(journalPath(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(data) + 1 {
		whole := 0
		for whole < len(ends) && ends[whole] <= int64(cut) {
			whole++
		}
		done, size, err := parseJournal(data[:cut])
		if diff := cmp.Diff(all[:whole], append([]Finished{}, done...)); err != nil || diff != "" {
			t.Fatalf("cut at %d: %v %s", cut, err, diff)
		}
		if want := append([]int64{0}, ends...)[whole]; size != want {
			t.Fatalf("cut at %d: %d bytes are good, want %d", cut, size, want)
		}
		if cut%50 != 0 {
			continue
		}
		if err := os.WriteFile(journalPath(dir, 1), data[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		j, _, err := openJournal(dir, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(j.record(record("last", 9)), j.Close()); err != nil {
			t.Fatal(err)
		}
		if got, _, err := readJournal(journalPath(dir, 1)); err != nil || len(got) != whole+1 || got[whole].Group.ID != "last" {
			t.Fatalf("cut at %d: then %d records, %v", cut, len(got), err)
		}
	}
}

// TestJournalWithoutRoom: of a record that does not fit nothing stands before the next.
func TestJournalWithoutRoom(t *testing.T) {
	dir := t.TempDir()
	j, _, err := openJournal(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	first, second := record("first", 1), record("second", 2)
	if err := j.record(first); err != nil {
		t.Fatal(err)
	}
	// A limit on the size of files cuts a write as a full disk does.
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	tight := limit
	tight.Cur = uint64(j.file.size) + 20
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &tight); err != nil {
		t.Fatal(err)
	}
	full := j.record(record("lost", 3))
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(full, syscall.EFBIG) {
		t.Errorf("a record without room: %v", full)
	}
	if err := errors.Join(j.record(second), j.Close()); err != nil {
		t.Fatal(err)
	}
	done, _, err := readJournal(journalPath(dir, 1))
	if diff := cmp.Diff([]Finished{first, second}, done); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

// TestJournalIsPlainZstd: other tools read JSON lines from it.
func TestJournalIsPlainZstd(t *testing.T) {
	dir := t.TempDir()
	j, _, err := openJournal(dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []Finished{record("a", 1), record("b", 1), record("a", 2)} {
		if err := j.record(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(journalPath(dir, 2))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[2], `{"group":{"id":"a"`) {
		t.Errorf("lines: %q", lines)
	}
	var seen []string
	err = Trajectories(dir, func(step int, f Finished) error {
		seen = append(seen, fmt.Sprint(step, f.Group.ID, f.Group.Trajectories[0].Reward, f.Counts["sandboxes"]))
		return nil
	})
	if diff := cmp.Diff([]string{"2a2 4", "2b1 2"}, seen); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if tr, err := FindTrajectory(dir, "b-0"); err != nil || tr.ID != "b-0" || tr.Logprobs[2] != -0.1 {
		t.Errorf("%+v, %v", tr, err)
	}
	if _, err := FindTrajectory(dir, "nonesuch"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
