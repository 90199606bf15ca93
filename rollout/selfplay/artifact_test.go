package selfplay

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var smallArtifact = Artifact{[]byte("script"), []byte("t.py"), []byte("parser"), []byte("bug"), []byte("weaken")}

func TestArtifactRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bug")
	yes := true
	report := Report{Valid: true, Checks: []Check{{CheckScope, &yes, "1", "2"}, {Name: CheckBug}}, FailToPass: []string{"a"}, PassToPass: []string{}}
	if err := smallArtifact.Save(dir, report); err != nil {
		t.Fatal(err)
	}
	a, err := LoadArtifact(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := LoadReport(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(smallArtifact, a) + cmp.Diff(report, r); diff != "" {
		t.Error(diff)
	}
	if err := smallArtifact.Save(dir, report); !errors.Is(err, fs.ErrExist) {
		t.Errorf("saving over a folder: %v", err)
	}
	report.Valid = false
	if err := SaveReport(dir, report); err != nil {
		t.Fatal(err)
	}
	if r, err = LoadReport(dir); err != nil || r.Valid {
		t.Errorf("the report was not replaced: %+v, %v", r, err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(dir)); len(entries) != 1 {
		t.Errorf("left over: %v", entries)
	}
}

func TestThePapersOtherNames(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{
		"test_script.sh": "script", "test_files.txt": "t.py", "parse_test_output.py": "parser",
		"bug_patch.diff": "bug", "test_patch.diff": "weaken",
	})
	a, err := LoadArtifact(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(smallArtifact, a); diff != "" {
		t.Error(diff)
	}
}

// A hostile artifact folder is an outcome, and nothing outside it is read.
func TestHostileArtifactFolders(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(target string) error{
		"absent":            func(string) error { return nil },
		"link out":          func(target string) error { return os.Symlink(secret, target) },
		"relative link out": func(target string) error { return os.Symlink("../../../../../../../../"+secret, target) },
		"dangling link":     func(target string) error { return os.Symlink("/nonexistent/x", target) },
		"folder":            func(target string) error { return os.Mkdir(target, 0o755) },
		"pipe":              func(target string) error { return syscall.Mkfifo(target, 0o644) },
		"too large":         func(target string) error { return os.WriteFile(target, make([]byte, 64<<10+1), 0o644) },
		"huge":              func(target string) error { return sparse(target, 1<<40) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "bug")
			if err := smallArtifact.Save(dir, Report{}); err != nil {
				t.Fatal(err)
			}
			target := filepath.Join(dir, TestScriptName)
			if err := errors.Join(os.Remove(target), spoil(target)); err != nil {
				t.Fatal(err)
			}
			a, err := LoadArtifact(dir)
			var refused *ArtifactError
			if !errors.As(err, &refused) || refused.File != TestScriptName {
				t.Errorf("%q, %v; want an ArtifactError about %s", a.TestScript, err, TestScriptName)
			}
		})
	}
}

func sparse(name string, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func TestArtifactFromPassesErrorsOn(t *testing.T) {
	lost := errors.New("lost")
	if _, err := ArtifactFrom(func(string) ([]byte, error) { return nil, lost }); !errors.Is(err, lost) {
		t.Errorf("%v, want the reader's error", err)
	}
}

func TestTestFileList(t *testing.T) {
	got, err := Artifact{TestFiles: []byte(" a.py \r\n\n./b/c.py\na.py\nb/../b/d.py\n")}.TestFileList()
	if err == nil {
		t.Errorf("a path with .. was accepted: %v", got)
	}
	got, err = Artifact{TestFiles: []byte(" a.py \r\n\n./b/c.py\na.py\n")}.TestFileList()
	if diff := cmp.Diff([]string{"a.py", "b/c.py"}, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	for _, bad := range []string{"", "\xff\xfe", "/etc/passwd", "../x", "a/.git/x", strings.Repeat("x\ny\n", 1) + strings.Repeat("z/", 600) + "z"} {
		if got, err := (Artifact{TestFiles: []byte(bad)}).TestFileList(); err == nil {
			t.Errorf("%.20q was accepted: %v", bad, got)
		}
	}
}

func FuzzTestFileList(f *testing.F) {
	f.Add([]byte("tests/test_a.py\n./b.py\n"))
	f.Add([]byte("../x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := Artifact{TestFiles: data}.TestFileList()
		if err != nil {
			return
		}
		for _, name := range list {
			if !filepath.IsLocal(name) {
				t.Fatalf("%q got through", name)
			}
		}
	})
}

func FuzzParseResults(f *testing.F) {
	for _, s := range []string{`{}`, `{"a": "passed", "b": "failed"}`, `{"a": {"b": 1}}`, `{"a": "passed"} x`, `[`, `{"a": "passed", "a": "failed"}`, "{\"\\ud800\": \"passed\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		res, why := parseResults(data)
		if (why == "") != (res != nil) {
			t.Fatalf("%v with %q", res, why)
		}
	})
}

func TestParseResultsAcceptsWhatItPrints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := results(rapid.MapOf(rapid.StringMatching(`[ -~]{1,40}`), rapid.Bool()).Draw(t, "results"))
		got, why := parseResults([]byte(printResults(want)))
		if diff := cmp.Diff(want, got); why != "" || diff != "" {
			t.Fatalf("%s %s", why, diff)
		}
	})
}

func printResults(res results) string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	var items []string
	for id, passed := range res {
		items = append(items, `"`+quote.Replace(id)+`": "`+map[bool]string{true: "passed", false: "failed"}[passed]+`"`)
	}
	return "{" + strings.Join(items, ", ") + "}\n"
}
