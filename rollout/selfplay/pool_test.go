package selfplay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPool(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles))
	a := calcArtifact(t, r)
	dir := filepath.Join(t.TempDir(), "bugs")
	p, err := OpenPool(dir)
	if err != nil {
		t.Fatal(err)
	}
	bug, added, err := p.Add(a, calcReport())
	if err != nil || !added || bug.Order() != 1 {
		t.Fatalf("%+v %v %v", bug, added, err)
	}
	if _, added, err = p.Add(a, calcReport()); err != nil || added {
		t.Errorf("the same artifact was added twice (%v)", err)
	}
	if _, _, err := p.Add(a, Report{}); err == nil {
		t.Error("an invalid artifact was added")
	}

	given := buggyTree(t, r, a)
	failed := diffOf(t, r, given, edits{"calc/text.py": {"w[-1]", "w[1]"}})
	second, why, err := p.AddFailed(t.Context(), r, bug, failed)
	if err != nil || why != "" || second.Order() != 2 || !strings.HasPrefix(second.ID, bug.ID+"-") {
		t.Fatalf("%+v %q %v", second, why, err)
	}
	lines := strings.Replace(string(failed), "@@ -", "@@ -1", 1)
	for name, c := range map[string]struct {
		parent Bug
		patch  string
		why    string
	}{
		"the same":               {bug, string(failed), "pooled already"},
		"the same, elsewhere":    {bug, lines, "pooled already"},
		"with clutter":           {bug, string(failed) + string(diffOf(t, r, nil, edits{".gitignore": {"/out/", "/out"}})), "pooled already"},
		"empty":                  {bug, "\n", "changes nothing"},
		"test files only":        {bug, string(diffOf(t, r, given, edits{"tests/test_text.py": {"HI!", "HO!"}})), "changes nothing"},
		"does not apply":         {bug, gitPatch, "does not apply"},
		"steers the test runner": {bug, string(diffOf(t, r, given, edits{"conftest.py": {"", "x"}})), "conftest.py"},
		"third order":            {second, string(failed), "order 2"},
	} {
		if _, got, err := p.AddFailed(t.Context(), r, c.parent, []byte(c.patch)); err != nil || !strings.Contains(got, c.why) {
			t.Errorf("%s: %q, %v; want %q in it", name, got, err, c.why)
		}
	}

	// A crash leaves a half-written folder; cleaning removes it, keeps everything else,
	// and lists the same. Opening removes nothing: another process may be at work.
	if err := os.Mkdir(filepath.Join(dir, tempPrefix+"123"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeTree(t, dir, map[string]string{"notes/readme": "a user's own"})
	again, err := OpenPool(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{bug.ID}, {second.ID}}, [][]string{again.IDs(1), again.IDs(2)}); diff != "" {
		t.Error(diff)
	}
	got, err := again.Get(second.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(second, got); diff != "" {
		t.Error(diff)
	}
	if _, err := again.Get("../x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an id that is none: %v", err)
	}
	for _, want := range []int{4, 3} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != want {
			t.Errorf("the folder holds %v, want %d; %v", entries, want, err)
		}
		if err := again.Clean(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, bug.ID, TestScriptName), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Get(bug.ID); err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("a changed bug was read: %v", err)
	}
}

func TestPoolAddsOnceFromManyGoroutines(t *testing.T) {
	p, err := OpenPool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for i := range 40 {
		wg.Go(func() {
			a := smallArtifact
			a.TestScript = fmt.Append(nil, i%4)
			_, added, err := p.Add(a, Report{Valid: true})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if added {
				total++
			}
		})
	}
	wg.Wait()
	if total != 4 || len(p.IDs(1)) != 4 {
		t.Errorf("%d added, %d listed, want 4", total, len(p.IDs(1)))
	}
}

func TestMemoComputesOnceAndForgetsFailures(t *testing.T) {
	var m memo[int]
	var mu sync.Mutex
	calls := 0
	compute := func(keep bool, err error) func() (int, bool, error) {
		return func() (int, bool, error) {
			mu.Lock()
			defer mu.Unlock()
			calls++
			return calls, keep, err
		}
	}
	if _, _, err := m.do(t.Context(), "k", compute(true, errors.New("lost"))); err == nil {
		t.Error("the error is gone")
	}
	if v, remembered, _ := m.do(t.Context(), "k", compute(false, nil)); v != 2 || remembered {
		t.Errorf("%d %v after a failure", v, remembered)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if v, _, err := m.do(context.Background(), "k", compute(true, nil)); v != 3 || err != nil {
				t.Errorf("%d, %v; want 3", v, err)
			}
		})
	}
	wg.Wait()
}
