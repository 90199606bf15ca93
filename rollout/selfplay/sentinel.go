package selfplay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/ssr-go/ssr/sandbox"
)

// Sentinels are tests that a verdict adds to each oracle test file it knows how
// to extend: one must pass, one must fail, one is skipped, and in Python one
// looks at the test runner. A run that was ended early with forged results lacks
// the first; a runner patched to pass everything passes the second; the third
// shows a parser that takes a skip for a pass; the fourth fails where part of
// the runner comes from another place than its own. Their names differ from
// verdict to verdict. They are used only where a run on the original proved that
// they work and disturb no other test.
type sentinel struct {
	file                  string
	passes, breaks, skips string // the names, as substrings of the tests' ids
	intact                string // "" where the runner is not looked at
}

// sentinelWords make names that look like anybody's tests.
var sentinelWords = strings.Fields(`
	alpha batch border cache cell chain clock column corner cursor delta digit edge empty entry field
	frame grid group header index inner input label layer limit list local lower margin matrix merge
	middle mixed model nested node number offset order outer output padding pair parent part path pivot
	point prefix query queue range record region result roundtrip row scale section segment shape shift
	signal single slice source stack stage state step strip suffix symbol table token total trace`)

// sentinelName is a name of three words, drawn by a hash of seed and salt, that
// does not occur in source.
func sentinelName(seed, salt string, source []byte) string {
	for round := 0; ; round++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", seed, salt, round))
		var words [3]string
		for i := range words {
			words[i] = sentinelWords[(int(sum[2*i])<<8|int(sum[2*i+1]))%len(sentinelWords)]
		}
		if name := strings.Join(words[:], "_"); !bytes.Contains(source, []byte(name)) {
			return name
		}
	}
}

// withSentinels returns a test file with its sentinels, or false for a kind of file
// that it cannot extend.
func withSentinels(name string, source []byte, seed string) ([]byte, sentinel, bool) {
	s := sentinel{
		file:   name,
		passes: sentinelName(seed, name+" passes", source),
		breaks: sentinelName(seed, name+" breaks", source),
		skips:  sentinelName(seed, name+" skips", source),
	}
	class := camel(sentinelName(seed, name+" class", source))
	switch {
	case path.Ext(name) == ".py":
		s.intact = sentinelName(seed, name+" intact", source)
		added := fmt.Sprintf("\n\nclass Test%s(__import__(\"unittest\").TestCase):\n"+
			"    def test_%s(self):\n        self.assertEqual(len(\"%s\"), %d)\n\n"+
			"    def test_%s(self):\n        self.assertEqual(len(\"%s\"), %d)\n\n"+
			"    def test_%s(self):\n        self.skipTest(\"later\")\n\n"+
			"    def test_%s(self):\n%s\n\n",
			class, s.passes, class, len(class), s.breaks, class, len(class)+1, s.skips, s.intact, runnerIntact)
		// A main block runs the tests, so that it must come last.
		at := len(source)
		if i := bytes.Index(source, []byte("\nif __name__")); i >= 0 {
			at = i + 1
		}
		return slices.Concat(source[:at], []byte(added), source[at:]), s, true
	case strings.HasSuffix(name, "_test.go"):
		s.passes, s.breaks, s.skips = camel(s.passes), camel(s.breaks), camel(s.skips)
		added := fmt.Sprintf("\nfunc Test%s(t *testing.T) {}\n\nfunc Test%s(t *testing.T) { t.Errorf(\"got %%d, want %d\", %d) }\n"+
			"\nfunc Test%s(t *testing.T) { t.Skip() }\n",
			s.passes, s.breaks, len(class)+1, len(class), s.skips)
		return slices.Concat(source, []byte(added)), s, true
	}
	if m := javaScriptTest.FindSubmatch(source); m != nil && javaScript[path.Ext(name)] {
		added := fmt.Sprintf("\n;%[1]s(%[2]q, () => {});\n%[1]s(%[3]q, () => { throw new Error(\"got %[5]d, want %[6]d\"); });\n%[1]s.skip(%[4]q, () => {});\n",
			m[1], s.passes, s.breaks, s.skips, len(class), len(class)+1)
		return slices.Concat(source, []byte(added)), s, true
	}
	return nil, s, false
}

// runnerIntact is the body of a Python test that fails where a function of the
// test runner, or the class of a stream, was defined elsewhere: by the code under
// test, which has no other way to change the result of a single known test that
// is not its own answer. What a decorator or a dataclass generates has no file.
const runnerIntact = `        import builtins, os, sys
        library, strange = os.path.dirname(os.__file__) + os.sep, []
        def check(items, places):
            for key, f in list(items):
                f = getattr(f, "fget", None) or getattr(f, "__func__", f)
                file = getattr(getattr(f, "__code__", None), "co_filename", library)
                generated = file.startswith("<frozen ") or key.startswith("__") and file.startswith("<")
                if not generated and not file.startswith(places):
                    strange.append("%s in %s" % (key, file))
        for name, module in list(sys.modules.items()):
            top = getattr(sys.modules.get(name.split(".")[0]), "__file__", None)
            if name.split(".")[0] in ("unittest", "_pytest", "pluggy", "traceback") and top:
                for owner in [module] + [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == name]:
                    check(vars(owner).items(), (library, os.path.dirname(top) + os.sep))
        check(vars(builtins).items(), (library,))
        result = getattr(getattr(self, "_outcome", None), "result", None)
        check([(k, f) for k, f in getattr(result, "__dict__", {}).items() if hasattr(type(result), k)], (library,))
        for thing in (sys.stdout, sys.stderr, result):
            home = getattr(sys.modules.get(type(thing).__module__), "__file__", None) or library
            if home.startswith("` + sandbox.Workdir + `/"):
                strange.append("%s in %s" % (type(thing).__name__, home))
        self.assertEqual(strange, [])
        self.assertIs(self.failureException, AssertionError)
`

// javaScriptTest finds the function that a test file of node:test, jest, vitest
// or mocha calls for a test.
var javaScriptTest = regexp.MustCompile(`(?m)^\s*(test|it)\(`)

var javaScript = wordSet(".js .mjs .cjs .jsx .ts .mts .cts .tsx")

func camel(name string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(name, "_") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

// check says what is wrong with the sentinel in a run's results, "" if nothing.
// It also removes the sentinel's ids from res. Whether the runner is as it was
// installed counts only where intact is set.
func (s sentinel) check(res results, intact bool) string {
	why := ""
	for _, want := range []struct {
		name   string
		passes bool
		fault  string
	}{
		{s.passes, true, "a control test that must pass fails"},
		{s.breaks, false, "a control test that must fail passes"},
		{s.intact, true, "the test runner is not as it was installed"},
	} {
		ids := s.ids(res, want.name)
		switch {
		case want.name == "" || want.name == s.intact && !intact:
		case len(ids) == 0:
			why = "a control test is missing from the run of " + s.file
		case len(ids) > 1:
			why = "a control test was run more than once in " + s.file
		case res[ids[0]] != want.passes:
			why = want.fault + " in " + s.file
		}
		for _, id := range ids {
			delete(res, id)
		}
	}
	for _, id := range s.ids(res, s.skips) {
		delete(res, id)
	}
	return why
}

// ids lists the tests of a run that carry one of the sentinel's names.
func (s sentinel) ids(res results, name string) (ids []string) {
	for id := range res {
		if name != "" && strings.Contains(id, name) {
			ids = append(ids, id)
		}
	}
	return ids
}

// runnerIntact reports whether the sentinel that looks at the runner passed, or
// is none.
func (s sentinel) runnerIntact(res results) bool {
	ids := s.ids(res, s.intact)
	return s.intact == "" || len(ids) == 1 && res[ids[0]]
}

// addSentinels puts sentinels into the files of the original that use selects.
func (r *Repo) addSentinels(o overlay, files []string, seed string) (overlay, []sentinel, error) {
	with := maps.Clone(o)
	if with == nil {
		with = overlay{}
	}
	var added []sentinel
	for _, name := range files {
		f, err := r.lookup(nil, name)
		if err != nil {
			return nil, nil, err
		}
		if f == nil {
			return nil, nil, &ArtifactError{TestFilesName, name + " is no file of the original"}
		}
		if data, s, ok := withSentinels(name, f.data, seed); ok {
			with[name] = &file{data, f.mode}
			added = append(added, s)
		}
	}
	return with, added, nil
}

// judge is what verdicts on one artifact have in common.
type judge struct {
	oracle oracle
	// sentinelFiles are the oracle files whose sentinels work.
	sentinelFiles []string
	// reversible: the parser answers the same when the log's lines come in
	// reverse order, so that doing so exposes a test with two results.
	reversible bool
	// skipsPass: the parser takes a skipped test for one that passed.
	skipsPass bool
	// intact: the runner is not changed by the project itself, so that it can be
	// looked at.
	intact bool
	// skips is how often the log on the original speaks of skipping, and mentions
	// how often it names each of the tests that are counted.
	skips    int
	mentions map[string]int
}

// newJudge runs the artifact's script once on the original with sentinels and,
// where these do not work, once without. An artifact whose required tests do
// not pass there cannot be judged.
func (v *Validator) newJudge(ctx context.Context, a Artifact, required []string) (*judge, error) {
	oracle, err := v.repo.oracleOf(a)
	if err != nil {
		return nil, err
	}
	j := &judge{oracle: oracle}
	files := slices.Sorted(maps.Keys(oracle.files))
	o, sentinels, err := v.repo.addSentinels(nil, files, a.ID()+" calibration")
	if err != nil {
		return nil, err
	}
	if len(sentinels) > 0 {
		log, res, err := v.runTree(ctx, o, a)
		if onlyInfrastructure(err) != nil {
			return nil, err
		}
		if err == nil && len(notPassing(res, required)) == 0 {
			whole := maps.Clone(res)
			j.intact = true
			for _, s := range sentinels {
				for _, id := range s.ids(res, s.skips) {
					j.skipsPass = j.skipsPass || res[id]
				}
				intact := s.runnerIntact(res)
				if s.check(res, false) == "" {
					j.sentinelFiles = append(j.sentinelFiles, s.file)
					j.intact = j.intact && intact
				}
			}
			return j, j.calibrate(ctx, v, a, required, log, whole)
		}
	}
	log, res, err := v.runTree(ctx, nil, a)
	if err != nil {
		return nil, fmt.Errorf("judge on the original: %w", err)
	}
	if failing := notPassing(res, required); len(failing) > 0 {
		return nil, fmt.Errorf("judge on the original: the report requires tests that do not pass there: %s", some(failing))
	}
	return j, j.calibrate(ctx, v, a, required, log, res)
}

// calibrate learns from a log of the original, whose results are res, by what
// signs a later log can be told to hold more than one run's results.
func (j *judge) calibrate(ctx context.Context, v *Validator, a Artifact, required []string, log []byte, res results) error {
	reversed, err := v.runParser(ctx, a.TestParser, reverseLines(log))
	j.reversible = err == nil && maps.Equal(reversed, res)
	j.skips = countSkips(log)
	if !j.reversible {
		j.mentions = map[string]int{}
		for _, id := range required[:min(len(required), maxMentioned)] {
			// A bare word also occurs where no test is meant.
			if n := bytes.Count(log, []byte(id)); n > 0 && strings.ContainsAny(id, ".:/ ") {
				j.mentions[id] = n
			}
		}
	}
	return onlyInfrastructure(err)
}

// maxMentioned bounds the work of counting names in the largest log.
const maxMentioned = 2000

func countSkips(log []byte) int { return bytes.Count(bytes.ToLower(log), []byte("skip")) }

// tampered says by what sign the log of a run in which all required tests pass
// holds more than the results of that run, "" if by none.
func (j *judge) tampered(log []byte) string {
	if n := countSkips(log); j.skipsPass && n > j.skips {
		return fmt.Sprintf("the artifact's parser takes a skipped test for one that passed, and the log speaks of skipping %d times, on the original %d times", n, j.skips)
	}
	for _, id := range slices.Sorted(maps.Keys(j.mentions)) {
		if n := bytes.Count(log, []byte(id)); n > j.mentions[id] {
			return fmt.Sprintf("the log names %s %d times, on the original %d times", id, n, j.mentions[id])
		}
	}
	return ""
}

// reverseLines puts the last line first.
func reverseLines(log []byte) []byte {
	lines := bytes.SplitAfter(log, []byte("\n"))
	if n := len(lines); n > 0 && len(lines[n-1]) > 0 {
		lines[n-1] = append(slices.Clip(lines[n-1]), '\n')
	}
	slices.Reverse(lines)
	return bytes.Join(lines, nil)
}

// notPassing lists the required tests that did not pass, in their order.
func notPassing(res results, required []string) []string {
	var ids []string
	for _, id := range required {
		if !res[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// runTree runs an artifact's script and parser on a tree.
func (v *Validator) runTree(ctx context.Context, o overlay, a Artifact) (log []byte, res results, err error) {
	tree, err := v.repo.plainTree(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	defer tree.Release()
	if log, err = v.runScript(ctx, tree, a.TestScript); err != nil {
		return nil, nil, err
	}
	res, err = v.runParser(ctx, a.TestParser, log)
	return log, res, err
}
