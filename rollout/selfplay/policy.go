package selfplay

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"
)

// This file decides what of a solver's patch takes part in a verdict. A patch
// is split by file, and each file is
//
//   - left out in silence: caches and editor files, which are never source;
//   - left out because its place is restored anyway: the oracle tests, and the
//     whole test folder around them;
//   - left out with a note: build and project files that also configure test
//     runners (pyproject.toml, Makefile, …) and git's own (.gitignore, …), which
//     stay as they were;
//   - a reason to call the bug unsolved: files that only serve to steer a test
//     runner, an interpreter or a shell (conftest.py, sitecustomize.py, .pth,
//     …), native modules, new modules that shadow the standard library or the
//     runner, and anything that could leave the tree.
//
// What the injection itself touches may always be edited, since undoing it is
// the task. docs/verdict.md has the table, with what remains open.

// oracle is what a verdict restores from the original.
type oracle struct {
	files   map[string]bool // the list in test_files.txt
	folders []string        // test folders restored as a whole
	bug     map[string]bool // paths the injection touches
}

// oracleOf finds what to restore for an artifact.
func (r *Repo) oracleOf(a Artifact) (oracle, error) {
	list, err := a.TestFileList()
	if err != nil {
		return oracle{}, err
	}
	bug, err := ParsePatch(a.BugInject)
	if err != nil {
		return oracle{}, fmt.Errorf("%s: %w", BugInjectName, err)
	}
	t := oracle{files: map[string]bool{}, bug: map[string]bool{}}
	for _, name := range bug.Paths() {
		t.bug[name] = true
	}
	for _, name := range list {
		t.files[name] = true
		if folder := r.testFolder(name, t.bug); folder != "" && !slices.Contains(t.folders, folder) {
			t.folders = append(t.folders, folder)
		}
	}
	return t, nil
}

// owns reports whether a verdict restores name.
func (t oracle) owns(name string) bool {
	if t.files[name] {
		return true
	}
	for _, folder := range t.folders {
		if strings.HasPrefix(name, folder+"/") {
			return true
		}
	}
	return false
}

// testFolder is the outermost folder around an oracle test that holds tests
// only, "" when there is none: one that is named for tests, or whose files all
// are, and in which the injection touches nothing. A folder of sources and
// tests side by side is not restored, since that would undo any repair.
func (r *Repo) testFolder(name string, bug map[string]bool) string {
	found := ""
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		touched := false
		for b := range bug {
			touched = touched || strings.HasPrefix(b, dir+"/")
		}
		if touched {
			break
		}
		if isTestFolderName(path.Base(dir)) || found == "" && r.holdsOnlyTests(dir) {
			found = dir
		}
	}
	return found
}

func (r *Repo) holdsOnlyTests(dir string) bool {
	for _, name := range r.sorted {
		if strings.HasPrefix(name, dir+"/") && !isTestFileName(path.Base(name)) {
			return false
		}
	}
	return true
}

func isTestFolderName(elem string) bool {
	elem = strings.ToLower(elem)
	switch elem {
	case "test", "tests", "testing", "spec", "specs", "__tests__", "t", "unittests", "testsuite", "testdata", "e2e":
		return true
	}
	for _, part := range []string{"_test", "_tests", "-test", "-tests"} {
		if strings.HasSuffix(elem, part) {
			return true
		}
	}
	return false
}

func isTestFileName(base string) bool {
	stem, _, _ := strings.Cut(base, ".")
	lower := strings.ToLower(stem)
	return base == "__init__.py" || base == "conftest.py" ||
		strings.HasPrefix(lower, "test_") || strings.HasSuffix(lower, "_test") || strings.HasSuffix(lower, "_spec") ||
		strings.HasSuffix(stem, "Test") || strings.HasSuffix(stem, "Tests") ||
		strings.Contains(base, ".test.") || strings.Contains(base, ".spec.") || strings.HasSuffix(base, ".t")
}

// filteredPatch is the part of a patch that takes part in a verdict.
type filteredPatch struct {
	patch *Patch
	notes []string // what was left out and is worth telling
}

// filterPatch parses a solver's patch against the tree o and applies the rules
// above. A patch that cannot be parsed or is refused is a *PatchError; one with
// nothing left is not.
func (r *Repo) filterPatch(o overlay, a Artifact, diff []byte) (filteredPatch, error) {
	t, err := r.oracleOf(a)
	if err != nil {
		return filteredPatch{}, err
	}
	parsed, err := parsePatch(diff)
	if err != nil {
		return filteredPatch{}, err
	}
	kept := filteredPatch{patch: &Patch{}}
	for _, f := range parsed.files {
		paths := filePaths(f)
		all := func(is func(string) bool) bool {
			return !slices.ContainsFunc(paths, func(n string) bool { return !is(n) })
		}
		for _, name := range paths {
			if why := unsafePath(name); why != "" {
				return filteredPatch{}, patchErrorf("path %q %s", name, why)
			}
		}
		switch {
		case all(isCache):
			continue
		case all(t.owns):
			continue
		case all(func(n string) bool { return !t.bug[n] && r.staysAsItWas(o, n) }):
			kept.notes = append(kept.notes, fmt.Sprintf("the change of %s was left out", paths[0]))
			continue
		}
		if why := refuseFile(f); why != "" {
			return filteredPatch{}, &PatchError{why}
		}
		for _, name := range paths {
			if why := r.steersRunner(o, t, f, name); why != "" {
				return filteredPatch{}, &PatchError{why}
			}
		}
		kept.patch.files = append(kept.patch.files, f)
	}
	if len(parsed.files) == 0 {
		return filteredPatch{}, patchErrorf("no changed file in it")
	}
	return kept, nil
}

// runnerFiles only serve to steer a test runner, an interpreter or a shell, or
// carry the names of an artifact's own files.
var runnerFiles = wordSet(`
	conftest.py pytest.ini .pytest.ini sitecustomize.py usercustomize.py pyvenv.cfg pythonrc.py .pythonrc .pythonrc.py
	.python-version .coveragerc nose.cfg .noserc unittest.cfg noxfile.py
	.env .envrc .bashrc .bash_profile .bash_login .bash_logout .bash_aliases .profile .zshrc .zshenv
	.npmrc .yarnrc .yarnrc.yml .rspec phpunit.xml phpunit.xml.dist go.work
	test_script.sh test_parser.py parse_test_output.py test_files.txt`)

// runnerStems are the same with any extension (jest.config.js, .mocharc.json).
var runnerStems = []string{
	".mocharc", "jest.config", "jest.setup", "vitest.config", "vite.config", "karma.conf",
	"ava.config", "playwright.config", ".babelrc", "babel.config",
}

// projectFiles build or describe a project and can configure its test runner too.
var projectFiles = wordSet(`
	setup.cfg tox.ini pyproject.toml setup.py Makefile makefile GNUmakefile CMakeLists.txt CTestTestfile.cmake
	DartConfiguration.tcl meson.build configure configure.ac Makefile.am Makefile.in build.ninja package.json
	tsconfig.json Cargo.toml build.rs go.mod build.gradle build.gradle.kts settings.gradle pom.xml Rakefile
	Gruntfile.js gulpfile.js justfile Justfile Taskfile.yml BUILD BUILD.bazel WORKSPACE`)

// nativeSuffixes are code that the loader or the interpreter takes by itself.
var nativeSuffixes = []string{".so", ".pyd", ".dll", ".dylib", ".pth", ".egg-link"}

// staysAsItWas reports whether a change of name is left out with a note.
func (r *Repo) staysAsItWas(o overlay, name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, ".git") || projectFiles[base] && r.exists(o, name)
}

// steersRunner says why a patch that touches name is refused, "" when it is not.
func (r *Repo) steersRunner(o overlay, t oracle, f *gitdiff.File, name string) string {
	if t.bug[name] || t.owns(name) {
		return ""
	}
	base := path.Base(name)
	if runnerFiles[base] || slices.ContainsFunc(runnerStems, func(s string) bool { return base == s || strings.HasPrefix(base, s+".") }) {
		return fmt.Sprintf("touches %s, which steers the test run", name)
	}
	if strings.Contains(name, ".cargo/") || strings.Contains(name, ".dist-info/") {
		return fmt.Sprintf("touches %s, which steers the test run", name)
	}
	for _, suffix := range nativeSuffixes {
		if strings.HasSuffix(base, suffix) || strings.Contains(base, ".so.") {
			return fmt.Sprintf("touches %s, which is loaded as native code or start-up code", name)
		}
	}
	if r.exists(o, name) {
		return ""
	}
	if projectFiles[base] || strings.HasSuffix(base, ".mk") {
		return fmt.Sprintf("adds %s, which can steer the test run", name)
	}
	m := topLevelModule(name)
	inPackage := m.folder != "." && r.exists(o, path.Join(m.folder, "__init__.py"))
	if shadowable[m.name] && !inPackage {
		return fmt.Sprintf("adds %s, which shadows Python's module %s", name, m.name)
	}
	return ""
}

type module struct{ folder, name string }

// topLevelModule is the Python module that a file defines, and the folder that
// would have to be on the module path for it to be a top-level one.
func topLevelModule(name string) module {
	if path.Ext(name) != ".py" {
		return module{}
	}
	folder, stem := path.Dir(name), strings.TrimSuffix(path.Base(name), ".py")
	if stem == "__init__" {
		folder, stem = path.Dir(folder), path.Base(folder)
	}
	return module{folder, stem}
}

// isOutcome reports whether err blames what was submitted, not the host.
func isOutcome(err error) bool {
	var p *PatchError
	var a *ArtifactError
	return errors.As(err, &p) || errors.As(err, &a)
}
