package selfplay

import (
	"errors"
	"fmt"
	"path"
	"regexp"
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
//   - left out with a note, since it stays as it was: existing build and project
//     files that also configure test runners (pyproject.toml, Makefile, …), git's
//     own (.gitignore, …), dependencies kept in the tree (vendor/, node_modules/,
//     …), and an existing program that the test script names;
//   - a reason to call the bug unsolved: files that only serve to steer a test
//     runner, an interpreter or a shell (conftest.py, sitecustomize.py, .pth,
//     …), native modules, new modules that shadow the standard library, the
//     runner or another module that the code imports from outside, and anything
//     that could leave the tree.
//
// What the injection itself touches may always be edited, since undoing it is
// the task. docs/verdict.md has the table, with what remains open.

// oracle is what a verdict restores from the original.
type oracle struct {
	files   map[string]bool // the list in test_files.txt
	folders []string        // test folders restored as a whole
	bug     map[string]bool // paths the injection touches
	script  []byte          // the test script
	outside map[string]bool // Python modules that the tree imports and does not hold
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
	outside, err := r.outside()
	if err != nil {
		return oracle{}, err
	}
	t := oracle{files: map[string]bool{}, bug: map[string]bool{}, script: a.TestScript, outside: outside}
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

// steeringInjection says why an injection into a tree with these oracle tests is
// refused, "" when it is not. What an injection touches, a solver may edit, so
// that it must not touch what steers the run or what lies among the tests.
func (r *Repo) steeringInjection(bug *Patch, oracleFiles []string) (string, error) {
	outside, err := r.outside()
	if err != nil {
		return "", err
	}
	var folders []string
	for _, name := range oracleFiles {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if isTestFolderName(path.Base(dir)) {
				folders = append(folders, dir)
				break
			}
		}
	}
	for _, f := range bug.files {
		for _, name := range filePaths(f) {
			if r.describesProject(nil, name) || projectFiles[path.Base(name)] {
				return fmt.Sprintf("touches %s, which describes the project or its test run", name), nil
			}
			if why := r.steersRunner(nil, oracle{outside: outside}, f, name); why != "" {
				return why, nil
			}
			if i := slices.IndexFunc(folders, func(dir string) bool { return strings.HasPrefix(name, dir+"/") }); i >= 0 {
				return fmt.Sprintf("touches %s, which lies among the tests in %s", name, folders[i]), nil
			}
		}
	}
	return "", nil
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
		case all(func(n string) bool { return !t.bug[n] && (r.describesProject(o, n) || r.exists(o, n) && t.runs(n)) }):
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
	conftest.py pytest.ini .pytest.ini pytest.toml .pytest.toml sitecustomize.py usercustomize.py pyvenv.cfg
	pythonrc.py .pythonrc .pythonrc.py .python-version .coveragerc .coveragerc.toml nose.cfg nose2.cfg .noserc
	unittest.cfg noxfile.py behave.ini .behaverc robot.toml .pdbrc
	.env .envrc .bashrc .bash_profile .bash_login .bash_logout .bash_aliases .profile .inputrc
	.zshrc .zshenv .zprofile .zlogin .gdbinit .lldbinit .ghci .irbrc .pryrc .Rprofile .Renviron .iex.exs .erlang .ocamlinit
	.npmrc .yarnrc .yarnrc.yml .pnp.cjs .pnp.js .pnp.loader.mjs .nycrc .nycrc.json .c8rc.json .taprc .swcrc bunfig.toml
	deno.json deno.jsonc .rspec .rspec-local .proverc .busted .luacov phpunit.xml phpunit.xml.dist .user.ini
	go.work dart_test.yaml nextest.toml CTestCustom.cmake CMakeUserPresets.json .bazelrc xunit.runner.json
	junit-platform.properties gradle.properties .jvmopts .sbtopts global.json
	test_script.sh test_parser.py parse_test_output.py test_files.txt`)

// runnerStems are the same with any extension (jest.config.js, .env.test).
var runnerStems = []string{
	".mocharc", "jest.config", "jest.setup", "vitest.config", "vitest.workspace", "vitest.setup", "vite.config",
	"karma.conf", "ava.config", "playwright.config", "cypress.config", ".babelrc", "babel.config", ".env",
}

// runnerFolders hold nothing but such files.
var runnerFolders = wordSet(".cargo .mvn .bundle .config")

// projectFiles build or describe a project and can configure its test runner too.
var projectFiles = wordSet(`
	setup.cfg tox.ini tox.toml pyproject.toml setup.py hatch.toml Pipfile Makefile makefile GNUmakefile CMakeLists.txt
	CTestTestfile.cmake CMakePresets.json DartConfiguration.tcl meson.build meson_options.txt meson.options configure
	configure.ac Makefile.am Makefile.in build.ninja SConstruct wscript package.json tsconfig.json Cargo.toml build.rs
	rust-toolchain rust-toolchain.toml go.mod build.gradle build.gradle.kts settings.gradle settings.gradle.kts gradlew
	mvnw pom.xml build.xml build.sbt project.clj deps.edn Gemfile Rakefile composer.json mix.exs rebar.config
	Package.swift pubspec.yaml cabal.project stack.yaml Directory.Build.props Directory.Build.targets NuGet.config
	Gruntfile.js gulpfile.js justfile Justfile Taskfile.yml BUILD BUILD.bazel WORKSPACE MODULE.bazel`)

// dependencyFolders hold what others wrote: a repair has no business in them,
// and an assertion library there decides what passes.
var dependencyFolders = wordSet("node_modules vendor bower_components site-packages dist-packages .venv venv .yarn")

// nativeSuffixes are code that the loader or the interpreter takes by itself.
var nativeSuffixes = []string{".so", ".pyd", ".dll", ".dylib", ".pth", ".egg-link"}

// describesProject reports whether name is git's own, a dependency kept in the
// tree, or a project file that is there.
func (r *Repo) describesProject(o overlay, name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, ".git") || projectFiles[base] && r.exists(o, name) || inFolder(name, dependencyFolders)
}

// inFolder reports whether one of the folders around name is among names.
func inFolder(name string, names map[string]bool) bool {
	for elem := range strings.SplitSeq(path.Dir(name), "/") {
		if names[elem] {
			return true
		}
	}
	return false
}

// runs reports whether the test script names the file, as a path or as a module
// after Python's -m.
func (t oracle) runs(name string) bool {
	patterns := []string{`(^|[^\w./-])(\./)?` + regexp.QuoteMeta(name) + `([^\w/-]|$)`}
	if stem, isPython := strings.CutSuffix(name, ".py"); isPython {
		module := strings.ReplaceAll(strings.TrimSuffix(stem, "/__main__"), "/", ".")
		patterns = append(patterns, `-m\s+`+regexp.QuoteMeta(module)+`([^\w.]|$)`)
	}
	return regexp.MustCompile("(?m)" + strings.Join(patterns, "|")).Match(t.script)
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
	if inFolder(name, runnerFolders) || strings.Contains(name, ".dist-info/") {
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
	if projectFiles[base] || strings.HasSuffix(base, ".mk") || strings.HasSuffix(base, ".runsettings") {
		return fmt.Sprintf("adds %s, which can steer the test run", name)
	}
	m := topLevelModule(name)
	inPackage := m.folder != "." && r.exists(o, path.Join(m.folder, "__init__.py"))
	if shadowable[m.name] && !inPackage {
		return fmt.Sprintf("adds %s, which shadows Python's module %s", name, m.name)
	}
	if t.outside[m.name] && !inPackage {
		return fmt.Sprintf("adds %s, which shadows the module %s that the code imports from outside", name, m.name)
	}
	return ""
}

// pythonImport finds what a line of Python imports by an absolute name.
var pythonImport = regexp.MustCompile(`(?m)^[ \t]*(?:from[ \t]+(\w+)|import[ \t]+([\w., \t]+))`)

// findOutside lists the top-level Python modules that some file of the snapshot
// imports and no file of it defines.
func (r *Repo) findOutside() (map[string]bool, error) {
	imported := map[string]bool{}
	for _, name := range r.sorted {
		if path.Ext(name) != ".py" {
			continue
		}
		f, err := r.lookup(nil, name)
		if err != nil {
			return nil, err
		}
		for _, m := range pythonImport.FindAllSubmatch(f.data, -1) {
			imported[string(m[1])] = true
			for item := range strings.SplitSeq(string(m[2]), ",") {
				item, _, _ = strings.Cut(strings.TrimSpace(item), " ")
				item, _, _ = strings.Cut(item, ".")
				imported[item] = true
			}
		}
	}
	delete(imported, "")
	for _, name := range r.sorted {
		delete(imported, topLevelModule(name).name)
	}
	for dir := range r.dirs { // a package need not have an __init__.py
		delete(imported, path.Base(dir))
	}
	return imported, nil
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
