package selfplay

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"text/template"
)

// Recipe is what scripted players must know about a repository's language and
// tests, and a policy has to find out. Commands are bash, in text/template
// syntax over RecipeData.
type Recipe struct {
	Name string `json:"name" yaml:"name"`
	// Source and Tests are regular expressions (RE2) over paths; what matches Tests is no source.
	Source string `json:"source" yaml:"source"`
	Tests  string `json:"tests" yaml:"tests"`

	// Function matches the first line of a function; its first group is the name.
	Function string `json:"function" yaml:"function"`
	// Indent: blocks are told by indentation, otherwise by brackets.
	Indent bool `json:"indent" yaml:"indent"`
	// Empty is the statement that a block without statements needs, "" for none.
	Empty string `json:"empty" yaml:"empty"`
	// Joined matches lines that continue the statement before them, such as else.
	Joined string `json:"joined" yaml:"joined"`
	// Fixed matches the beginning of statements that are never removed.
	Fixed string `json:"fixed" yaml:"fixed"`

	// View shows a function.
	View string `json:"view" yaml:"view"`
	// Rewrite, optional, replaces a function by Text. With it the injector breaks, and
	// the oracle solver restores, a function as a whole; without it, by an edit of the
	// lines that differ.
	Rewrite string `json:"rewrite,omitempty" yaml:"rewrite,omitempty"`
	// Setup writes the test script, the parser and the list of test files.
	Setup string `json:"setup" yaml:"setup"`
	// Failing runs the tests, prints the names of those that fail, one a line, or a
	// line "none", and keeps them.
	Failing string `json:"failing" yaml:"failing"`
	// Weaken deletes Test or, where that is empty, the first that Failing kept, and
	// saves the diffs of the injection and of the weakening.
	Weaken string `json:"weaken" yaml:"weaken"`
	// Check, optional, runs a test file and prints OK as its last line where all of it
	// passes; Reset undoes what was done to a file and shows the function. Careful
	// players need them to mend their work.
	Check string `json:"check,omitempty" yaml:"check,omitempty"`
	Reset string `json:"reset,omitempty" yaml:"reset,omitempty"`
	// Log shows the last change of a function, with the abbreviated name of its commit.
	Log string `json:"log" yaml:"log"`
}

// RecipeData is what the commands of a Recipe are filled in with.
type RecipeData struct {
	File, Function string
	First, Last    int // the function's lines, from 1
	TestFile       string
	TestModule     string // TestFile without extension, dots for slashes
	Test           string // for Weaken
	Text           string // for Rewrite
}

// PythonRecipe is for Python code tested with unittest.
func PythonRecipe() Recipe {
	return Recipe{
		Name:     "python-unittest",
		Source:   `\.py$`,
		Tests:    `(^|/)(tests?/.*|test_[^/]*|[^/]*_test|conftest)\.py$`,
		Function: `^\s*(?:async )?def (\w+)\(`,
		Indent:   true,
		Empty:    "pass",
		Joined:   `^\s*(elif|else|except|finally|case)\b`,
		Fixed:    `^(import |from |global |nonlocal |class |@|"""|'''|r"""|#)`,
		View:     `sed -n '/def {{.Function}}(/,/^$/p' {{.File}}`,
		Rewrite: `cat > /tmp/new.py <<'END'
{{.Text}}

END
sed -i -e '/def {{.Function}}(/r /tmp/new.py' -e '/def {{.Function}}(/,/^$/d' {{.File}}`,
		Setup: `echo 'python3 -m unittest -v {{.TestModule}} 2>&1' > test_script.sh
echo {{.TestFile}} > test_files.txt
cat > test_parser.py <<'END'
import json, re, sys
log = re.findall(r"(\w+ \(\S+\))(?:\n.*)? \.\.\. (ok|FAIL|ERROR)", sys.stdin.read())
print(json.dumps({name: "passed" if end == "ok" else "failed" for name, end in log}))
END`,
		Failing: `bash test_script.sh | python3 test_parser.py | grep -oP '\w+(?= \(\S+": "f)' | tee /tmp/failing | grep . || echo none`,
		Weaken: `sed -i "/def {{or .Test "$(head -1 /tmp/failing)"}}(/,/^$/d" {{.TestFile}}
git diff {{.TestFile}} > test_weaken.diff
git diff {{.File}} > bug_inject.diff`,
		Check: `python3 -m unittest {{.TestModule}} 2>&1 | tail -1`,
		Reset: `git checkout -q {{.File}}
sed -n '/def {{.Function}}(/,/^$/p' {{.File}}`,
		Log: `git log -1 --format='%h %s' -L '/def {{.Function}}(/,/^$/:{{.File}}' | sed '/^diff/,/^@@/d'`,
	}
}

// recipe is a compiled Recipe.
type recipe struct {
	Recipe
	code
	source, tests *regexp.Regexp
	commands      map[string]*template.Template
}

func (r Recipe) compile() (*recipe, error) {
	c := &recipe{Recipe: r, commands: map[string]*template.Template{}}
	var errs []error
	expr := func(name, s string, required bool) *regexp.Regexp {
		if s == "" {
			if required {
				errs = append(errs, fmt.Errorf("%s is empty", name))
			}
			return nil
		}
		re, err := regexp.Compile(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		return re
	}
	c.source, c.tests = expr("source", r.Source, true), expr("tests", r.Tests, true)
	c.code = code{indent: r.Indent, empty: r.Empty,
		function: expr("function", r.Function, true), joined: expr("joined", r.Joined, false), fixed: expr("fixed", r.Fixed, false)}
	if c.code.function != nil && c.code.function.NumSubexp() < 1 {
		errs = append(errs, errors.New("function: needs a group around the name"))
	}
	for name, text := range map[string]string{"view": r.View, "rewrite": r.Rewrite, "setup": r.Setup, "failing": r.Failing, "weaken": r.Weaken,
		"check": r.Check, "reset": r.Reset, "log": r.Log} {
		t, err := template.New(name).Option("missingkey=error").Parse(text)
		if err != nil {
			errs = append(errs, err)
		}
		c.commands[name] = t
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("recipe %s: %w", r.Name, err)
	}
	return c, nil
}

func (c *recipe) command(name string, d RecipeData) (string, error) {
	var b strings.Builder
	if err := c.commands[name].Execute(&b, d); err != nil {
		return "", fmt.Errorf("recipe %s: %s: %w", c.Name, name, err)
	}
	return b.String(), nil
}

// ErrNoRecipe is wrapped by FindRecipe where no built-in recipe fits.
var ErrNoRecipe = errors.New("no built-in recipe fits this repository: the only one is for Python with unittest")

// FindRecipe picks the built-in recipe that fits a repository by looking at its
// files, or returns ErrNoRecipe.
func FindRecipe(files []string) (Recipe, error) {
	r := PythonRecipe()
	c, err := r.compile()
	if err != nil {
		return Recipe{}, err
	}
	var sources, tests int
	for _, f := range files {
		switch {
		case c.isTest(f):
			tests++
		case c.isSource(f):
			sources++
		}
	}
	if sources == 0 || tests == 0 {
		return Recipe{}, fmt.Errorf("%w, and here are %d Python sources and %d Python tests", ErrNoRecipe, sources, tests)
	}
	return r, nil
}

// mends says whether the recipe has what careful players need to mend their work.
func (c *recipe) mends() bool { return c.Rewrite != "" && c.Check != "" && c.Reset != "" }

func (c *recipe) isTest(name string) bool   { return c.tests.MatchString(name) }
func (c *recipe) isSource(name string) bool { return c.source.MatchString(name) && !c.isTest(name) }

// testFile picks the test file of a source file: the one whose name contains
// the source's, otherwise the one that mentions the function most often.
func (c *recipe) testFile(files []string, read func(string) ([]byte, error), source, function string) string {
	stem := strings.TrimSuffix(path.Base(source), path.Ext(source))
	best, most := "", 0
	for _, f := range files {
		if !c.isTest(f) {
			continue
		}
		score := 0
		if text, err := read(f); err == nil {
			score = strings.Count(string(text), function)
		}
		if score > 0 && strings.Contains(path.Base(f), stem) {
			score += 1 << 20
		}
		if score > most {
			best, most = f, score
		}
	}
	return best
}

// data fills in what is known from a place in the code.
func (c *recipe) data(file string, f function, testFile string) RecipeData {
	module := strings.TrimSuffix(testFile, path.Ext(testFile))
	return RecipeData{
		File: file, Function: f.name, First: f.start + 1, Last: f.end,
		TestFile: testFile, TestModule: strings.ReplaceAll(module, "/", "."),
	}
}

// observed cuts the feedback's own lines, which begin with "[", off the end of
// an observation and splits the rest into lines.
func observed(seen string) []string {
	lines := strings.Split(strings.TrimRight(seen, "\n"), "\n")
	for len(lines) > 0 && strings.HasPrefix(lines[len(lines)-1], "[") {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// scriptError is how a scripted player gives up: its plan did not work out.
type scriptError struct{ error }

func giveUp(format string, args ...any) error {
	return &scriptError{fmt.Errorf(format, args...)}
}
