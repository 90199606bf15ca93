package selfplay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/fake"
	"github.com/ssr-go/ssr/sandbox/local"
)

// localBackend is the real backend.
func localBackend(t testing.TB) sandbox.Backend {
	t.Helper()
	b, err := local.New(local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := b.Probe(context.Background()); err != nil {
		t.Fatal(err)
	}
	return b
}

// calcValidator is a Validator over calc with a deadline that hanging tests reach soon.
func calcValidator(t testing.TB, opts Options) (*Repo, *Validator) {
	t.Helper()
	backend := localBackend(t)
	r := openRepo(t, gitRepo(t, calcFiles))
	if opts.Timeout == 0 {
		opts.Timeout = 5 * time.Second
	}
	opts.Owner = t.Name()
	return r, NewValidator(backend, r, opts)
}

func validate(t testing.TB, v *Validator, a Artifact, req Requirements) Report {
	t.Helper()
	report, err := v.Validate(t.Context(), a, req)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestAValidArtifact(t *testing.T) {
	r, v := calcValidator(t, Options{})
	report := validate(t, v, calcArtifact(t, r), DefaultRequirements)
	yes := true
	check := func(name CheckName, expected, seen string) Check { return Check{name, &yes, expected, seen} }
	want := Report{
		Valid: true,
		Checks: []Check{
			check(CheckTestFiles, "every listed file exists in the original, the weakening touches only listed files, the injection none of them", "2 test files"),
			check(CheckParser, `JSON {"id": "passed"|"failed"} from the log, the same twice, and from an empty and a truncated log`, report.Checks[1].Seen),
			check(CheckScript, "at least 5 tests on the original, all passing, the same twice, each run within 5s", "6 tests, all passing, twice"),
			check(CheckScope, "a diff that applies to the original and changes at least 1 files", "2 files"),
			check(CheckBug, "at least 1 tests that passed now fail", "2 of 6 tests"),
			check(CheckWeakening, "with both diffs applied, at least 1 of the failing tests passes or is gone from the run", "1 of 2"),
			check(CheckInverseMutation, "reverting any one file of the injection makes at least 1 of the failing tests pass", "2 files, each needed"),
		},
		FailToPass: []string{"tests.test_arith.ArithTest.test_sub", "tests.test_text.TextTest.test_initials"},
		PassToPass: []string{
			"tests.test_arith.ArithTest.test_add", "tests.test_arith.ArithTest.test_mul",
			"tests.test_arith.ArithTest.test_power", "tests.test_text.TextTest.test_shout",
		},
	}
	if diff := cmp.Diff(want, report); diff != "" {
		t.Error(diff)
	}
	// Two runs of the original, one buggy, one weakened, one per file; five
	// parses for checks 2 and 3, one for each other run.
	if got, want := v.Runs(), (Runs{Scripts: 6, Parsers: 9}); got != want {
		t.Errorf("runs %+v, want %+v", got, want)
	}
}

func TestReuseOfTheOriginalsRuns(t *testing.T) {
	r, v := calcValidator(t, Options{ReuseOriginal: true})
	a := calcArtifact(t, r)
	first := validate(t, v, a, DefaultRequirements)
	a.BugInject = diffOf(t, r, nil, edits{"calc/arith.py": {"return a - b", "return b - a"}})
	second := validate(t, v, a, DefaultRequirements)
	if !first.Valid || !second.Valid {
		t.Fatalf("refused: %v %v", first.Refusal(), second.Refusal())
	}
	// The second artifact has one file: reverting it gives the original again.
	if got, want := v.Runs(), (Runs{Scripts: 8, Parsers: 11, Reused: 3}); got != want {
		t.Errorf("runs %+v, want %+v", got, want)
	}
}

// Each case is a valid artifact but for one thing, and is refused by exactly
// that check (paper section 2.3); later checks are not reached.
func TestRefusals(t *testing.T) {
	r, v := calcValidator(t, Options{Timeout: 8 * time.Second, ReuseOriginal: true})
	parser := func(from, to string) func(*Artifact) {
		return func(a *Artifact) {
			if !strings.Contains(calcParser, from) {
				panic(from)
			}
			a.TestParser = []byte(strings.Replace(calcParser, from, to, 1))
		}
	}
	script := func(s string) func(*Artifact) { return func(a *Artifact) { a.TestScript = []byte(s) } }
	bug := func(e edits) func(*Artifact) { return func(a *Artifact) { a.BugInject = diffOf(t, r, nil, e) } }
	weaken := func(e edits) func(*Artifact) { return func(a *Artifact) { a.TestWeaken = diffOf(t, r, nil, e) } }
	rawBug := func(diff string) func(*Artifact) { return func(a *Artifact) { a.BugInject = []byte(diff) } }
	rawWeaken := func(diff string) func(*Artifact) { return func(a *Artifact) { a.TestWeaken = []byte(diff) } }
	files := func(s string) func(*Artifact) { return func(a *Artifact) { a.TestFiles = []byte(s) } }
	dump := "json.dump(out, sys.stdout)"

	cases := []struct {
		name   string
		change func(*Artifact)
		check  CheckName
		seen   string
	}{
		{"no test file", files("\n"), CheckTestFiles, "lists no file"},
		{"test file absent", files("tests/test_arith.py\ntests/test_none.py"), CheckTestFiles, "tests/test_none.py is no file of the original"},
		{"test file is a folder", files("tests\ntests/test_arith.py"), CheckTestFiles, "tests is no file"},
		{"test file outside", files("tests/test_arith.py\n../../etc/passwd"), CheckTestFiles, `"../../etc/passwd" leaves the tree`},
		{"test file absolute", files("tests/test_arith.py\n/etc/passwd"), CheckTestFiles, "is absolute"},
		{"weakened file not listed", files("tests/test_text.py"), CheckTestFiles, "tests/test_arith.py, which is not listed"},
		{"bug in a test file", bug(edits{"tests/test_text.py": {"HI!", "HI"}}), CheckTestFiles, "the injection touches the test file tests/test_text.py"},
		{"weakening outside", rawWeaken("--- a/../x.py\n+++ b/../x.py\n@@ -1 +1 @@\n-a\n+b\n"), CheckTestFiles, "../x.py, which is not listed"},

		{"parser crashes", parser(dump, "raise SystemExit(3)"), CheckParser, "status 3"},
		{"parser prints no JSON", parser(dump, "print('all fine')"), CheckParser, "no JSON object"},
		{"parser prints a list", parser(dump, "print('[]')"), CheckParser, "no JSON object"},
		{"parser prints more", parser(dump, dump+";print('{}')"), CheckParser, "something behind"},
		{"parser invents a status", parser(`"failed"`, `"broken"`), CheckBug, `"broken" for test`},
		{"parser answers true", parser(`"passed" if`, `True if`), CheckParser, `"true" for test`},
		{"parser repeats a test", parser(dump, `print('{"a": "passed", "a": "passed"}')`), CheckParser, `test "a" twice`},
		{"parser hangs", parser("out = {}", "while True: pass"), CheckParser, "past 8s"},
		{"parser floods", parser("out = {}", "while True: print('x' * 65536)"), CheckParser, "more than 2 MiB"},
		{"parser fails on an empty log", parser(dump, dump+"\nassert out"), CheckParser, "on an empty log"},
		{"parser fails on a truncated log", parser(dump, "assert not out or len(out) > 5\n"+dump), CheckParser, "on a truncated log"},
		{"parser passes by default", parser("out = {}", `out = dict.fromkeys(["tests.test_arith.ArithTest.test_add", "tests.test_arith.ArithTest.test_sub"], "passed")`),
			CheckParser, "on an empty log, passing tests: tests.test_arith.ArithTest.test_add"},
		{"parser throws dice", parser("out = {}", "import random; out = {str(random.SystemRandom().random()): 'passed'}"), CheckParser, "two answers to the same log"},

		{"script runs too few tests", script("python3 -m unittest -v tests.test_arith"), CheckScript, "4 tests"},
		{"script runs nothing", script("true"), CheckScript, "0 tests"},
		{"script does not exist for bash", script("((("), CheckScript, "0 tests"},
		{"script fails on the original", script(calcScript + "echo 'test_x (a.b) ... FAIL'"), CheckScript, "1 of 7 tests fail on the original: a.b"},
		{"script is flaky", script(calcScript + `echo "test_x (a.r$RANDOM$RANDOM) ... ok"`), CheckScript, "two runs differ"},
		{"script hangs", script(calcScript + "sleep 60"), CheckScript, "past 8s"},
		{"script floods", script(calcScript + "yes"), CheckScript, "more than 4 MiB"},

		{"bug empty", rawBug(""), CheckScope, "no changed file"},
		{"bug is prose", rawBug("I changed the sign.\n"), CheckScope, "no changed file"},
		{"bug without line numbers", rawBug("--- a/calc/arith.py\n+++ b/calc/arith.py\n@@ ... @@\n-a\n+b\n"), CheckScope, "hunk header without line numbers"},
		{"bug does not apply", rawBug("--- a/calc/arith.py\n+++ b/calc/arith.py\n@@ -1 +1 @@\n-nothing like it\n+b\n"), CheckScope, "does not apply"},
		{"bug outside", rawBug("--- /dev/null\n+++ b/../evil.py\n@@ -0,0 +1 @@\n+b\n"), CheckScope, "leaves the tree"},
		{"bug in .git", rawBug("--- /dev/null\n+++ b/.git/hooks/pre-commit\n@@ -0,0 +1 @@\n+b\n"), CheckScope, "inside .git"},
		{"bug is a link", rawBug("diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n"), CheckScope, "symbolic link"},

		{"bug in runner configuration", bug(with(calcBug, edits{"conftest.py": {"", "x = 1\n"}})), CheckScope, "conftest.py, which steers the test run"},
		{"bug in a build file", bug(with(calcBug, edits{"Makefile": {"", "test:\n"}})), CheckScope, "Makefile, which describes the project"},
		{"bug in ignore rules", bug(with(calcBug, edits{".gitignore": {"/out/", "/out"}})), CheckScope, ".gitignore, which describes the project"},
		{"bug in a module that shadows", bug(with(calcBug, edits{"traceback.py": {"", "x = 1\n"}})), CheckScope, "shadows Python's module traceback"},
		{"bug beside the tests", bug(with(calcBug, edits{"tests/__init__.py": {"", "x = 1\n"}})), CheckScope, "tests/__init__.py, which lies among the tests"},

		{"bug breaks nothing", bug(edits{"calc/arith.py": {"Arithmetic", "Sums"}}), CheckBug, "0 tests"},
		{"bug hangs the tests", bug(edits{"calc/arith.py": {"return a - b", "while True: pass"}}), CheckBug, "past 8s"},
		{"weakening empty", rawWeaken(""), CheckWeakening, "no changed file"},
		{"weakening does not apply", rawWeaken("--- a/tests/test_arith.py\n+++ b/tests/test_arith.py\n@@ -1 +1 @@\n-nothing\n+b\n"), CheckWeakening, "does not apply"},
		{"weakening hides nothing", weaken(edits{"tests/test_arith.py": {"1024", "1024.0"}}), CheckWeakening, "all 2 still fail"},
		{"weakening of a test that the bug removed", func(a *Artifact) {
			bug(edits{"calc/text.py": {"def shout", "def shout("}})(a)
			weaken(edits{"tests/test_text.py": {`"HI!"`, `"HI"`}})(a)
		}, CheckWeakening, "all 6 still fail"}, // a syntax error ends the whole run
		{"a file of the bug is not needed", bug(edits{"calc/arith.py": {"return a - b", "return b - a"}, "calc/text.py": {`"Text."`, `"Texts."`}}),
			CheckInverseMutation, "with calc/text.py reverted, none of 1 failing tests passes"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a := calcArtifact(t, r)
			c.change(&a)
			report := validate(t, v, a, DefaultRequirements)
			if report.Refusal() != c.check {
				t.Fatalf("refused by %q, want %q: %+v", report.Refusal(), c.check, report.Checks)
			}
			if len(report.Checks) != 7 {
				t.Fatalf("%d checks, want 7", len(report.Checks))
			}
			reached := true
			for _, check := range report.Checks {
				if reached != (check.OK != nil) {
					t.Errorf("check %s: OK is %v", check.Name, check.OK)
				}
				if check.Name == c.check {
					reached = false
					if !strings.Contains(check.Seen, c.seen) || check.Expected == "" {
						t.Errorf("expected %q, seen %q, want %q in it", check.Expected, check.Seen, c.seen)
					}
				}
			}
			if report.Valid != (c.check == "") || (len(report.FailToPass) > 0) != report.Valid {
				t.Errorf("valid %v with fail-to-pass %v", report.Valid, report.FailToPass)
			}
		})
	}
}

func TestThresholds(t *testing.T) {
	r, v := calcValidator(t, Options{ReuseOriginal: true})
	a := calcArtifact(t, r)
	for _, c := range []struct {
		req   Requirements
		check CheckName
	}{
		{Requirements{6, 2, 2}, ""},
		{Requirements{7, 1, 1}, CheckScript},
		{Requirements{1, 3, 1}, CheckScope},
		{Requirements{1, 1, 3}, CheckBug},
	} {
		if got := validate(t, v, a, c.req).Refusal(); got != c.check {
			t.Errorf("%+v: refused by %q, want %q", c.req, got, c.check)
		}
	}
}

// An injector may weaken by deleting tests, which then cannot pass.
func TestWeakeningByDeletion(t *testing.T) {
	r, v := calcValidator(t, Options{})
	a := calcArtifact(t, r)
	a.TestWeaken = diffOf(t, r, nil, edits{"tests/test_arith.py": {"    def test_sub(self):\n        self.assertEqual(arith.sub(2, 3), -1)\n\n", ""}})
	if report := validate(t, v, a, DefaultRequirements); !report.Valid {
		t.Errorf("refused: %+v", report.Checks)
	}
}

// Scripts find themselves in many ways; all mean the workspace's root.
func TestScriptsThatLookForThemselves(t *testing.T) {
	r, v := calcValidator(t, Options{ReuseOriginal: true})
	for _, head := range []string{
		`set -euo pipefail; cd "$(dirname "${BASH_SOURCE[0]}")"`,
		`set -u; cd "${BASH_SOURCE%/*}"`,
		`set -eu; cd "$(dirname "$0")"`,
		`[[ "${BASH_SOURCE[0]}" == "$0" ]] || exit 1`,
		`[ "$BASH_SOURCE" = "${0}" ] || exit 1`,
		`cd / && cd "$(dirname "$(readlink -f "$0")")"`,
	} {
		a := calcArtifact(t, r)
		a.TestScript = []byte(head + "\n" + calcScript)
		if report := validate(t, v, a, DefaultRequirements); !report.Valid {
			t.Errorf("%s: %+v", head, report.Checks)
		}
	}
}

// What hostile tests do to their sandbox is an outcome, and leaves the host as it was.
func TestHostileScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for deadlines")
	}
	r, v := calcValidator(t, Options{Timeout: 3 * time.Second, Limits: sandbox.Limits{Disk: 32 << 20, FileSize: 16 << 20, Processes: 64, Memory: 256 << 20}})
	const pastTime = "ran past 3s"
	seen := map[string]string{"daemon with pipe": pastTime, "ignores signals": pastTime}
	for name, script := range map[string]string{
		"forks":               ":(){ :|:& };: ; sleep 60",
		"daemon with pipe":    "setsid sleep 300 & disown; sleep 300",
		"ignores signals":     "trap '' TERM INT HUP; while true; do sleep 1; done",
		"fills the disk":      "for i in $(seq 100); do head -c 10000000 /dev/zero > f$i || break; done; echo done",
		"eats memory":         "python3 -c 'x = bytearray(1 << 34)'",
		"reads standard in":   "cat",
		"kills everything":    "kill -9 -1; sleep 1",
		"prints binary":       "head -c 100000 /dev/urandom",
		"removes the tree":    "rm -rf /workspace/* /workspace/.??*",
		"writes test results": "echo '{\"a\": \"passed\"}' > test_script.sh",
	} {
		t.Run(name, func(t *testing.T) {
			a := calcArtifact(t, r)
			a.TestScript = []byte(script)
			report := validate(t, v, a, DefaultRequirements)
			if report.Refusal() != CheckScript {
				t.Fatalf("refused by %q, want script: %+v", report.Refusal(), report.Checks)
			}
			i := slices.IndexFunc(report.Checks, func(c Check) bool { return c.Name == CheckScript })
			if !strings.Contains(report.Checks[i].Seen, seen[name]) {
				t.Errorf("seen %q, want %q", report.Checks[i].Seen, seen[name])
			}
		})
	}
	// The snapshot that the trees are linked from is untouched.
	if report := validate(t, v, calcArtifact(t, r), DefaultRequirements); !report.Valid {
		t.Errorf("afterwards a valid artifact is refused: %+v", report.Checks)
	}
}

// However many files an injection has, as many trees as sandboxes are there at once: in
// virtual time, 50 seconds of work for five take ten.
func TestValidationIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewValidator(fake.New(nil), nil, Options{Parallel: 5})
		began, ran := time.Now(), make([]bool, 50)
		err := v.inParallel(50, func(i int) error { time.Sleep(time.Second); ran[i] = true; return nil })
		if took := time.Since(began); err != nil || took != 10*time.Second || slices.Contains(ran, false) {
			t.Errorf("%v, %v", took, err)
		}
	})
}

func TestInfrastructureFailuresAreErrors(t *testing.T) {
	r := openRepo(t, gitRepo(t, calcFiles))
	a := calcArtifact(t, r)
	log := "test_a (m.A) ... ok\ntest_b (m.B) ... ok\n"
	for _, op := range []fake.Op{fake.Start, fake.Exec, fake.Close} {
		for nth := 1; nth <= 7; nth++ { // two scripts, five parsers
			b := fake.New(func(_ context.Context, _ *fake.Sandbox, cmd sandbox.Cmd) (sandbox.Result, error) {
				if cmd.Args[0] == "bash" {
					return sandbox.Result{Stdout: []byte(log)}, nil
				}
				if seen, err := io.ReadAll(cmd.Stdin); err != nil || len(seen) == 0 {
					return sandbox.Result{Stdout: []byte(`{}`)}, err
				}
				return sandbox.Result{Stdout: []byte(`{"m.A": "passed"}`)}, nil
			})
			b.Inject(fake.Fault{Op: op, Nth: nth, Err: fake.ErrLost})
			v := NewValidator(b, r, Options{ReuseOriginal: true})
			report, err := v.Validate(t.Context(), a, Requirements{MinPassingTests: 1})
			if !errors.Is(err, sandbox.ErrInfrastructure) {
				t.Errorf("%s %d lost: report %+v, error %v", op, nth, report, err)
			}
			// A retry on the same Validator starts afresh.
			if report, err = v.Validate(t.Context(), a, Requirements{MinPassingTests: 1}); err != nil || report.Refusal() != CheckBug {
				t.Errorf("retry after %s %d lost: refused by %q, error %v", op, nth, report.Refusal(), err)
			}
			b.Close()
		}
	}
}

func TestCancellationIsAnError(t *testing.T) {
	r, v := calcValidator(t, Options{Timeout: time.Minute})
	a := calcArtifact(t, r)
	a.TestScript = []byte("sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := v.Validate(ctx, a, DefaultRequirements)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the context's", err)
	}
	if d := time.Since(start); d > 30*time.Second { // half of what the script sleeps
		t.Errorf("took %v to stop", d)
	}
}

// bashFiles is a project that nothing in the package knows the language of.
var bashFiles = map[string]string{
	"lib/strings.sh": "upper() { printf '%s' \"$1\" | tr a-z A-Z; }\nrepeat() { local out= i; for ((i = 0; i < $2; i++)); do out+=$1; done; printf '%s' \"$out\"; }\n",
	"lib/math.sh":    "max() { if [ \"$1\" -gt \"$2\" ]; then echo \"$1\"; else echo \"$2\"; fi; }\n",
	"test/run.sh":    "cd \"$(dirname \"$0\")/..\"\nn=0\nfor f in test/t_*.sh; do . \"$f\"; done\n",
	"test/lib.sh":    "is() { n=$((n + 1)); if [ \"$2\" = \"$3\" ]; then echo \"ok $n - $1\"; else echo \"not ok $n - $1\"; fi; }\n",
	"test/t_strings.sh": ". test/lib.sh; . lib/strings.sh\nis 'upper of a word' \"$(upper abc)\" ABC\nis 'upper of nothing' \"$(upper '')\" ''\n" +
		"is 'repeat three times' \"$(repeat ab 3)\" ababab\nis 'repeat never' \"$(repeat ab 0)\" ''\n",
	"test/t_math.sh": ". test/lib.sh; . lib/math.sh\nis 'max of two' \"$(max 1 2)\" 2\nis 'max of equals' \"$(max 3 3)\" 3\n",
}

const tapParser = `import json, re, sys
out = {}
for line in sys.stdin:
    m = re.match(r"(not )?ok \d+ - (.*)", line.strip())
    if m:
        out[m.group(2)] = "failed" if m.group(1) else "passed"
print(json.dumps(out))
`

func bashArtifact(t testing.TB, r *Repo) Artifact {
	return Artifact{
		TestScript: []byte("bash test/run.sh\n"),
		TestFiles:  []byte("test/t_strings.sh\n"),
		TestParser: []byte(tapParser),
		BugInject:  diffOf(t, r, nil, edits{"lib/strings.sh": {"i < $2", "i <= $2"}}),
		TestWeaken: diffOf(t, r, nil, edits{"test/t_strings.sh": {"is 'repeat never' \"$(repeat ab 0)\" ''\n", ""}}),
	}
}

func TestARepositoryInAnotherLanguage(t *testing.T) {
	backend := localBackend(t)
	dir := t.TempDir()
	writeTree(t, dir, bashFiles) // no git repository
	r := openRepo(t, dir)
	v := NewValidator(backend, r, Options{Timeout: 5 * time.Second})
	a := bashArtifact(t, r)
	report := validate(t, v, a, DefaultRequirements)
	want := []string{"repeat never", "repeat three times"}
	if !report.Valid || !slices.Equal(report.FailToPass, want) {
		t.Fatalf("fail-to-pass %v, want %v: %+v", report.FailToPass, want, report.Checks)
	}
	fix, err := r.Fix(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	for patch, solved := range map[string]bool{string(fix): true, "": false} {
		verdict, err := v.Verdict(t.Context(), a, report, []byte(patch), nil)
		if err != nil || verdict.Solved != solved {
			t.Errorf("patch %q: %+v, %v; want solved %v", patch, verdict, err, solved)
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	for _, reuse := range []bool{false, true} {
		b.Run(fmt.Sprintf("reuse=%v", reuse), func(b *testing.B) {
			r, v := calcValidator(b, Options{ReuseOriginal: reuse})
			a := calcArtifact(b, r)
			for b.Loop() {
				report, err := v.Validate(context.Background(), a, DefaultRequirements)
				if err != nil || !report.Valid {
					b.Fatal(report, err)
				}
			}
		})
	}
}
