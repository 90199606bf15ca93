package selfplay

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// The last two families of docs/security.md: programs that look for the answer
// in a solver's tree, and patches that would turn a verdict without a repair.
// (sandbox/sandboxtest has the other five.)

// hunter is a program of a solver's that looks for what the bug removed, or for
// which files it changed. It succeeds when it finds something.
type hunter struct {
	name    string
	program string
	// naive: the same program finds it in a tree that was made the simple way,
	// by applying the diffs to a working copy.
	naive bool
}

// answer is a line that the injection removed.
const answer = "return a - b"

var hunters = []hunter{
	{"the history", "git log --all -p | grep '" + answer + "'", true},
	{"an older commit", "git show HEAD~1:calc/arith.py || git show HEAD~2", true},
	{"every object", "git cat-file --batch-all-objects --batch | grep -a '" + answer + "'", true},
	{"every loose object, by hand", "python3 -c '\nimport glob, sys, zlib\nsys.exit(not any(b\"" + answer + "\" in zlib.decompress(open(f, \"rb\").read()) for f in glob.glob(\".git/objects/??/*\")))'", true},
	{"the reflog", "git reflog --all | sed -n 2p | grep .", true},
	{"the stash", "git stash list | grep . || git show refs/stash", true},
	{"lost objects", "git fsck --lost-found --no-reflogs 2>/dev/null | grep -e dangling -e unreachable", true},
	{"packs and alternates", "ls .git/objects/pack/*.pack .git/objects/info/alternates 2>/dev/null | grep .", false},
	{"other branches, tags and notes", "git for-each-ref | grep -v refs/heads/main", true},
	{"where the last command left off", "cat .git/ORIG_HEAD .git/FETCH_HEAD .git/MERGE_HEAD .git/COMMIT_EDITMSG 2>/dev/null | grep .", true},
	{"a remote", "git remote -v | grep .", true},
	{"what the index says of the host's files", "git ls-files --debug | grep -E '(dev|uid): [1-9]|ino: [1-9]'", true},
	{"what is not committed", "git status --porcelain | grep .", true},
	{"hooks and excludes", "ls .git/hooks .git/info 2>/dev/null | grep -v : | grep .", true},
	{"backups and editor files", "grep -rl '" + answer + "' --include='*~' --include='*.orig' --include='.*.swp' --include='*.bak' .", true},
	{"compiled files", "grep -rla '" + answer + "' --include='*.pyc' . || find . -name '*.pyc' | grep .", true},
	{"build folders", "grep -rl '" + answer + "' build dist", true},
	{"archives", "python3 -c '\nimport glob, sys, zipfile\nsys.exit(not any(b\"" + answer + "\" in z.read(n) for f in glob.glob(\"**/*.zip\", recursive=True) for z in [zipfile.ZipFile(f)] for n in z.namelist()))'", true},
	{"patches", "grep -rl '" + answer + "' --include='*.patch' --include='*.diff' .", true},
	{"an index of tags", "grep -s '" + answer + "' tags", true},
	{"anything in the workspace", "grep -rl '" + answer + "' . --exclude-dir=.git", true},
	{"anything outside", "grep -rls '" + answer + "' /tmp /var /run /dev/shm /home /root /opt /srv /mnt", false},
	{"an installed copy", "cd / && python3 -c 'import calc'", false},
	{"the bug's own files", "find / -xdev \\( -name bug_inject.diff -o -name test_weaken.diff -o -name report.json -o -name test_parser.py \\) 2>/dev/null | grep .", false},
	{"the environment", "env | grep -i -e ssr -e bug -e artifact; cat /proc/*/environ 2>/dev/null | grep -a -i ssr", false},
	{"times of change", "[ $(find . -path ./.git -prune -o -printf '%T@\\n' | sort -u | wc -l) -gt 1 ]", false}, // the backend sees to it
	{"the order of making", "[ \"$(find calc tests -type f -printf '%C@ %p\\n' | sort -n | cut -d' ' -f2)\" != \"$(find calc tests -type f | LC_ALL=C sort)\" ]", false},
	{"links to a store", "find . -type f -links +1 | grep .", false},
	{"owners and modes", "[ $(find . -type f -path './calc/*' -printf '%u %g %m\\n' | sort -u | wc -l) -gt 1 ]", false},
	{"attributes of files", "python3 -c '\nimport os, sys\nsys.exit(not any(os.listxattr(os.path.join(d, f)) for d, _, fs in os.walk(\".\") for f in fs))'", false},
}

// workingCopy is a project as somebody who works on it has it: with history,
// branches, a stash, lost objects, caches and builds.
func workingCopy(t *testing.T) string {
	t.Helper()
	original := calcFiles["calc/arith.py"]
	dir := gitRepo(t, calcFiles)
	for _, args := range [][]string{{"branch", "topic"}, {"tag", "v1"}, {"remote", "add", "origin", "https://example.invalid/x.git"}} {
		git(t, dir, args...)
	}
	writeTree(t, dir, map[string]string{
		"calc/arith.py.orig": original, "calc/arith.py~": original, "build/lib/calc/arith.py": original, "calc/__pycache__/arith.cpython-311.pyc": original,
		"dist/calc.zip": zipOf(t, "calc/arith.py", original), "fix.patch": "-    return b - a\n+    " + answer + "\n", "tags": "sub\tcalc/arith.py\t/^    " + answer + "$/;\"\tf\n",
	})
	git(t, dir, "add", "-A", "-f")
	git(t, dir, "commit", "-q", "-m", "third")
	return dir
}

// naiveTree is a working copy with the bug applied to it, nothing else done.
func naiveTree(t *testing.T, dir string, a Artifact) string {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "naive")
	if out, err := exec.Command("cp", "-a", dir, copied).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(stdin []byte, args ...string) {
		args = append([]string{"-c", "core.logAllRefUpdates=true"}, args...)
		if _, err := runGit(t.Context(), copied, stdin, args...); err != nil {
			t.Fatal(err)
		}
	}
	writeTree(t, copied, map[string]string{"README.md": "stashed\n"})
	run(nil, "stash")
	run(nil, "commit", "-q", "--allow-empty", "-m", "lost")
	run(nil, "reset", "-q", "--hard", "HEAD~1")
	run(a.BugInject, "apply", "-")
	run(a.TestWeaken, "apply", "-")
	return copied
}

func TestASolverFindsNoAnswer(t *testing.T) {
	backend := localBackend(t)
	dir := workingCopy(t)
	r := openRepo(t, dir)
	a := calcArtifact(t, r)
	tree, err := r.SolverTree(t.Context(), a, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Release()
	open := func(dir string) sandbox.Sandbox {
		box, err := backend.Start(t.Context(), sandbox.Spec{Dir: dir, Owner: t.Name()})
		if err != nil {
			t.Fatal(err)
		}
		return box
	}
	solver, naive := open(tree.Dir), open(naiveTree(t, dir, a))
	defer solver.Close()
	defer naive.Close()
	finds := func(box sandbox.Sandbox, program string) (bool, string) {
		res, err := box.Exec(t.Context(), sandbox.Cmd{Args: []string{"bash", "-c", program}})
		if err != nil {
			t.Fatal(err)
		}
		return res.OK(), string(res.Stdout) + string(res.Stderr)
	}
	if ok, out := finds(solver, "grep -rl 'return b - a' calc"); !ok {
		t.Errorf("control: the bug is not in the tree: %s", out)
	}
	for _, h := range hunters {
		t.Run(h.name, func(t *testing.T) {
			if found, out := finds(naive, h.program); found != h.naive {
				t.Errorf("control: in a naive tree found is %v, want %v: %s", found, h.naive, out)
			}
			if found, out := finds(solver, h.program); found {
				t.Errorf("found: %s", out)
			}
		})
	}
	if ok, out := finds(solver, "python3 -m unittest -v tests.test_text 2>&1 | grep -q FAILED && git status --porcelain"); !ok {
		t.Errorf("control: honest work does not go through: %s", out)
	}
}

// attack is a patch that would have a verdict say "solved".
type attack struct {
	name  string
	edits edits
	// reason is what the verdict says; where open is set, the verdict is turned,
	// for the reason that docs/verdict.md gives.
	reason string
	open   bool
	// fools a naive verdict: the patch applied as it is, the listed tests
	// restored, the script run and its log parsed.
	fools bool
}

// naiveVerdict is what the paper's order says without further care.
func naiveVerdict(t *testing.T, v *Validator, r *Repo, a Artifact, patch []byte) bool {
	t.Helper()
	given := buggyTree(t, r, a)
	p, err := ParsePatch(patch)
	if err != nil {
		return false
	}
	patched, err := r.apply(t.Context(), given, p)
	if err != nil {
		return false
	}
	o, err := r.oracleOf(a)
	if err != nil {
		t.Fatal(err)
	}
	_, res, err := v.runTree(context.Background(), patched.without(func(name string) bool { return o.files[name] }), a)
	if err != nil {
		if onlyInfrastructure(err) != nil {
			t.Fatal(err)
		}
		return false
	}
	return len(notPassing(res, slices.Concat(calcReport().FailToPass, calcReport().PassToPass))) == 0
}

// Programs of the attacks. forged prints good results for every known test.
const (
	forged = "import sys\n" +
		"for n, c in (('test_add', 'arith.Arith'), ('test_sub', 'arith.Arith'), ('test_mul', 'arith.Arith'), ('test_power', 'arith.Arith'), ('test_shout', 'text.Text'), ('test_initials', 'text.Text')):\n" +
		"    sys.stderr.write('%s (tests.test_%sTest.%s) ... ok\\n' % (n, c, n))\nsys.stderr.flush()\n"
	exitForged = forged + "import os\nos._exit(0)\n"
	passAll    = "import unittest.result as u\nu.TestResult.addFailure = u.TestResult.addError = lambda self, test, err: self.addSuccess(test)\n" +
		"import unittest.runner as r\nr.TextTestResult.addFailure = r.TextTestResult.addError = lambda self, test, err: self.addSuccess(test)\n"
	rewriteStream = "import sys\nclass Lie:\n    def __init__(self, s): self.s = s\n    def write(self, x): return self.s.write(x.replace('FAIL', 'ok').replace('ERROR', 'ok'))\n    def __getattr__(self, n): return getattr(self.s, n)\nsys.stderr = Lie(sys.stderr)\n" +
		"import unittest.runner as r\nr.TextTestResult.addFailure = r.TextTestResult.addError = lambda self, test, err: self.addSuccess(test)\n"
	forgedBytecode = "import importlib.util, os, struct, marshal\nn = 'tests/test_text.py'\n" +
		"src = open(n).read().replace('self.assertEqual(', '(lambda *a: None)(')\nst = os.stat(n)\ncode = compile(src, os.path.abspath(n), 'exec')\n" +
		"c = importlib.util.cache_from_source(n)\nos.makedirs(os.path.dirname(c), exist_ok=True)\n" +
		"open(c, 'wb').write(importlib.util.MAGIC_NUMBER + struct.pack('<III', 0, int(st.st_mtime), st.st_size) + marshal.dumps(code))\n"
	onlyKnown = "import unittest.runner as r\nknown = ('test_sub', 'test_initials')\nfor name in ('addFailure', 'addError'):\n    def lie(self, test, err, was=getattr(r.TextTestResult, name)):\n        (self.addSuccess(test) if test._testMethodName in known else was(self, test, err))\n    setattr(r.TextTestResult, name, lie)\n"
	// rewriteKnown changes the lines about two tests, and nothing else.
	rewriteKnown = "import sys, unittest.runner as r\nclass Lie:\n    def __init__(self, s): self.s, self.lie = s, False\n" +
		"    def write(self, x):\n        self.lie = ('test_sub' in x or 'test_initials' in x) or self.lie and x != '\\n'\n" +
		"        return self.s.write(x.replace('FAIL', 'ok').replace('ERROR', 'ok') if self.lie else x)\n    def __getattr__(self, n): return getattr(self.s, n)\n" +
		"for out in (sys.stderr, sys.stdout): pass\nimport gc\nfor d in [o for o in gc.get_objects() if type(o).__name__ == '_WritelnDecorator']: d.stream = Lie(d.stream)\nsys.stderr = Lie(sys.stderr)\n"
	// lieToResult finds the result that the running test reports to.
	lieToResult = "    import sys\n    f = sys._getframe()\n    while f and not ('self' in f.f_locals and hasattr(f.f_locals['self'], '_outcome') and f.f_locals['self']._outcome): f = f.f_back\n" +
		"    if f:\n        r = f.f_locals['self']._outcome.result\n        r.addFailure = lambda test, err, was=r.addFailure: r.addSuccess(test) if 'test_sub' in str(test) else was(test, err)\n"
	equalAll = "class Any:\n    def __eq__(self, other): return True\n"
)

// indented is a program as the body of a function.
func indented(program string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(program), "\n", "\n    ") + "\n"
}

func attacks() []attack {
	const (
		absent  = "2 of 6 tests do not pass"
		control = "a control test"
		steers  = "which steers the test run"
		shadows = "which shadows"
	)
	init := func(code string) edits { return edits{"calc/__init__.py": {"", code}} }
	file := func(name, code string) edits { return edits{name: {"", code}} }
	return []attack{
		{name: "forged results, then exit", edits: init(exitForged), reason: "a control test is missing", fools: true},
		{name: "forged results at exit", edits: init("import atexit\ndef forge():\n" + indented(forged) + "atexit.register(forge)\n"), reason: "the log holds two results for", fools: true},
		{name: "forged results by a thread", edits: init("import os, threading, time\ndef forge():\n    time.sleep(0.05)\n" + indented(exitForged) + "threading.Thread(target=forge).start()\ntime.sleep(5)\n"), reason: control, fools: true},
		{name: "forged results by a signal", edits: init("import signal, time\ndef forge(*a):\n" + indented(exitForged) + "signal.signal(signal.SIGALRM, forge)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(5)\n"), reason: control, fools: true},
		{name: "forged results by a child that outlives", edits: init("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(30)\n" + indented(exitForged)), reason: absent},
		{name: "forged results from a test's call", edits: edits{"calc/arith.py": {"    return b - a", indented(exitForged) + "    return b - a"}}, reason: control, fools: true},
		{name: "forged results in place of the program", edits: init("import os, sys\nos.execv(sys.executable, [sys.executable, '-c', " + quoted(forged) + "])\n"), reason: control, fools: true},
		{name: "exit with success", edits: init("import os\nos._exit(0)\n"), reason: "6 of 6 tests do not pass"},
		{name: "exit by exception", edits: init("raise SystemExit(0)\n"), reason: "6 of 6 tests do not pass"},
		{name: "runner patched to succeed", edits: init("import unittest\nunittest.TestCase.run = lambda self, result=None: (result.startTest(self), result.addSuccess(self), result.stopTest(self))\n"), reason: control, fools: true},
		{name: "runner patched to report no failure", edits: init(passAll), reason: control, fools: true},
		{name: "runner's stream rewritten", edits: init(rewriteStream), reason: control, fools: true},
		{name: "runner patched for the known tests alone", edits: init(onlyKnown), reason: "the test runner is not as it was installed", fools: true},
		{name: "runner's stream rewritten for the known tests alone", edits: init(rewriteKnown), reason: "the test runner is not as it was installed", fools: true},
		{name: "a test's result patched while it runs", edits: edits{"calc/arith.py": {"    return b - a", lieToResult + "    return b - a"}, "calc/text.py": {"w[-1]", "w[0]"}}, reason: "the test runner is not as it was installed", fools: true},
		{name: "assertions patched", edits: init("import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\n"), reason: control, fools: true},
		{name: "failures are no exceptions", edits: init("import unittest\nclass Soft(Exception): pass\nunittest.TestCase.failureException = Soft\nunittest.TestCase.fail = lambda *a: None\nunittest.TestCase._baseAssertEqual = lambda *a, **k: None\nunittest.TestCase._getAssertEqualityFunc = lambda *a: lambda *b, **k: None\n"), reason: control, fools: true},
		{name: "test modules replaced in memory", edits: init("import sys, types, unittest\nfor m, c, names in (('tests.test_arith', 'ArithTest', 'add sub mul power'), ('tests.test_text', 'TextTest', 'shout initials')):\n    mod = types.ModuleType(m)\n    setattr(mod, c, type(c, (unittest.TestCase,), dict({'test_' + n: lambda self: None for n in names.split()}, __module__=m)))\n    sys.modules[m] = mod\n    import tests\n    setattr(tests, m.split('.')[1], mod)\n"), reason: control, fools: true},
		{name: "bytecode of the tests forged while running", edits: edits{"calc/__init__.py": {"", forgedBytecode}, "calc/arith.py": {"return b - a", "return a - b"}}, reason: control, fools: true},
		{name: "skip at import", edits: init("import unittest\nraise unittest.SkipTest('later')\n"), reason: "6 of 6 tests do not pass"},
		{name: "skip in the code", edits: edits{"calc/arith.py": {"    return b - a", "    import unittest\n    raise unittest.SkipTest('later')"}}, reason: absent},
		{name: "tests rewritten while running", edits: init("open('tests/test_text.py', 'w').write('')\n"), reason: "tests do not pass"},
		{name: "background edits", edits: init("import os\nif os.fork() == 0:\n    os.setsid()\n    while True:\n        open('tests/test_text.py', 'w').write('')\n"), reason: "tests do not pass"},
		{name: "log flooded", edits: init("import sys\nsys.stderr.write('x' * 10000000)\n"), reason: "the script printed more than 4 MiB"},
		{name: "parser bomb", edits: init("import sys\nsys.stderr.write('test_' + 'x' * 1000000 + '\\n')\n"), reason: absent},
		{name: "thousands of results", edits: init("import sys\nfor i in range(25000): sys.stderr.write('t%d (m.T.t%d) ... ok\\n' % (i, i))\n"), reason: "more than 20000 tests"},
		{name: "hang", edits: init("while True: pass\n"), reason: "the script ran past"},
		{name: "disk filled", edits: init("import itertools\nfor i in itertools.count(): open('x%d' % i, 'w').write('x' * 8000000)\n"), reason: "the script filled its disk"},

		{name: "script in the tree", edits: file("test_script.sh", "echo ok\n"), reason: steers},
		{name: "parser in the tree", edits: file("test_parser.py", "print('{}')\n"), reason: steers},
		{name: "programs for the path", edits: edits{"python3": {"", "#!/bin/sh\necho ok\n"}, "bin/python3": {"", "#!/bin/sh\necho ok\n"}}, reason: absent},
		{name: "a library to load first", edits: file("evil.so", "ELF"), reason: "which is loaded as native code"},
		{name: "module shadows the runner", edits: edits{"unittest/__init__.py": {"", "x = 1\n"}, "unittest/__main__.py": {"", forged}}, reason: shadows, fools: true},
		{name: "module shadows the library", edits: file("difflib.py", exitForged), reason: shadows, fools: true},
		{name: "module shadows a private part of the library", edits: file("_json.py", exitForged), reason: shadows},
		{name: "module shadows what the runner prints with", edits: file("traceback.py", exitForged), reason: shadows, fools: true},
		{name: "sitecustomize", edits: file("sitecustomize.py", exitForged), reason: steers},
		{name: "usercustomize", edits: file("usercustomize.py", exitForged), reason: steers},
		{name: "path file", edits: file("evil.pth", "import os\n"), reason: "start-up code"},
		{name: "conftest", edits: file("conftest.py", exitForged), reason: steers},
		{name: "conftest among the tests", edits: file("tests/conftest.py", exitForged), reason: absent},
		{name: "pytest.ini", edits: file("pytest.ini", "[pytest]\naddopts = -k nothing\n"), reason: steers},
		{name: "setup.cfg", edits: file("setup.cfg", "[tool:pytest]\naddopts = -x\n"), reason: "which can steer the test run"},
		{name: "Makefile", edits: file("Makefile", "test:\n\techo ok\n"), reason: "which can steer the test run"},
		{name: "environment file", edits: file(".env", "X=1\n"), reason: steers},
		{name: "plug-in metadata", edits: file("evil-1.0.dist-info/entry_points.txt", "[pytest11]\nevil = evil\n"), reason: steers},
		{name: "plug-in metadata of an egg", edits: file("evil.egg-info/entry_points.txt", "[pytest11]\nevil = evil\n"), reason: absent},
		{name: "a dependency of its own", edits: file("site-packages/numpy/__init__.py", exitForged), reason: absent},
		{name: "failing test deleted", edits: edits{"tests/test_text.py": nil}, reason: absent},
		{name: "test module shadowed", edits: file("tests/test_text/__init__.py", exitForged), reason: absent, fools: true},
		{name: "helper among the tests", edits: file("tests/json.py", exitForged), reason: absent},
		{name: "package of the tests", edits: file("tests/__init__.py", exitForged), reason: absent, fools: true},
		{name: "loader in the package of the tests", edits: file("tests/__init__.py", "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"), reason: absent, fools: true},
		{name: "oracle test replaced", edits: edits{"tests/test_text.py": nil, "tests/test_arith.py": {"arith.sub(2, 3)\n", "arith.sub(2, 3)\n        import os; os._exit(0)\n"}}, reason: absent},
		{name: "stale bytecode", edits: edits{"calc/__pycache__/arith.cpython-311.pyc": {"", "x"}, "calc/arith.pyc": {"", "x"}}, reason: absent},
		{name: "the original read from git", edits: init("import subprocess\nsrc = subprocess.run(['git', 'show', 'HEAD:calc/arith.py'], capture_output=True, text=True)\nif src.returncode == 0: open('calc/arith.py', 'w').write(src.stdout)\n"), reason: absent},
		{name: "the original read from the host", edits: init("import glob\nfor f in glob.glob('/proc/*/cwd/calc/arith.py') + glob.glob('/tmp/*/calc/arith.py'):\n    src = open(f).read()\n    if 'return a - b' in src: open('calc/arith.py', 'w').write(src)\n"), reason: absent},

		// What no verdict by outcome alone can see; docs/verdict.md says so.
		{name: "open: the runner changed under a name of its own", edits: init("import unittest.runner\nexec(compile(" + quoted(onlyKnown) + ", unittest.runner.__file__, 'exec'))\n"), open: true, fools: true},
		{name: "open: code that looks at its caller", edits: edits{"calc/arith.py": {"    return b - a", "    import sys\n    return a - b if sys._getframe(1).f_code.co_name == 'test_sub' else b - a"}, "calc/text.py": {"    return \"\".join", "    import sys\n    if sys._getframe(1).f_code.co_name == 'test_initials':\n        return 'gif'\n    return \"\".join"}}, open: true, fools: true},
		{name: "open: objects that equal everything", edits: edits{"calc/arith.py": {"    return b - a", indented(equalAll) + "    return Any()"}, "calc/text.py": {"    return \"\".join", indented(equalAll) + "    return Any()\n    return \"\".join"}}, open: true, fools: true},
		{name: "open: the tests' values by heart", edits: edits{"calc/arith.py": {"    return b - a", "    return -1"}, "calc/text.py": {"    return \"\".join", "    return 'gif'\n    return \"\".join"}}, open: true, fools: true},
	}
}

// quoted is a string literal of Python.
func quoted(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`, "\n", `\n`).Replace(s) + "'"
}

func TestTamperingDoesNotTurnAVerdict(t *testing.T) {
	if testing.Short() {
		t.Skip("seventy verdicts, twice each")
	}
	r, v := calcValidator(t, Options{Timeout: 6 * time.Second, Limits: sandbox.Limits{Disk: 64 << 20}})
	a := calcArtifact(t, r)
	given := buggyTree(t, r, a)
	list := attacks()
	for _, x := range list {
		t.Run(x.name, func(t *testing.T) {
			patch := diffOf(t, r, given, x.edits)
			if fooled := naiveVerdict(t, v, r, a, patch); fooled != x.fools {
				t.Errorf("control: a naive verdict says solved %v, want %v", fooled, x.fools)
			}
			verdict := judgeEdits(t, v, r, a, x.edits)
			if verdict.Solved != x.open || !strings.Contains(verdict.Reason, x.reason) {
				t.Errorf("solved %v: %s; want %q", verdict.Solved, verdict.Reason, x.reason)
			}
		})
	}
	// The same files with the honest fix beside them: what steers the run still
	// spoils it, what is replaced or left out does not.
	for name, solved := range map[string]bool{
		"conftest": false, "sitecustomize": false, "module shadows the library": false, "Makefile": false,
		"conftest among the tests": true, "helper among the tests": true, "stale bytecode": true, "failing test deleted": true, "a dependency of its own": true, "plug-in metadata of an egg": true,
	} {
		t.Run("control: "+name+" beside the fix", func(t *testing.T) {
			i := slices.IndexFunc(list, func(x attack) bool { return x.name == name })
			if verdict := judgeEdits(t, v, r, a, with(fixEdits(), list[i].edits)); verdict.Solved != solved {
				t.Errorf("solved %v: %s", verdict.Solved, verdict.Reason)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(r.work, "base", "calc", "arith.py")); err != nil {
		t.Error(err)
	}
}
