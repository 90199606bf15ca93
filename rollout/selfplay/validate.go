package selfplay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ssr-go/ssr/sandbox"
	"golang.org/x/sync/errgroup"
)

// DefaultTimeout is how long one run of a test script may take.
const DefaultTimeout = 90 * time.Second

// DefaultRequirements are the thresholds of validation where nothing else is said.
var DefaultRequirements = Requirements{MinPassingTests: 5, MinChangedFiles: 1, MinFailingTests: 1}

// Options tune a Validator. The zero value works.
type Options struct {
	// Timeout of one run of a test script; 0 means DefaultTimeout.
	Timeout time.Duration
	// Parallel bounds the sandboxes alive at once; 0 means GOMAXPROCS.
	Parallel int
	// ReuseOriginal remembers what a script and parser did on the original tree,
	// so that artifacts which share them, as in a group, run it once. Each
	// remembered run was a real one in a fresh sandbox.
	ReuseOriginal bool
	// Limits of every sandbox, beside time and output, which validation sets.
	// Zero fields take the backend's defaults.
	Limits sandbox.Limits
	// Owner labels the sandboxes for sweeping.
	Owner string
}

// Validator validates artifacts and judges patches over one repository, every
// run in a fresh sandbox from a clean tree. It is safe for concurrent use.
type Validator struct {
	backend  sandbox.Backend
	repo     *Repo
	opts     Options
	slots    chan struct{}
	counters runCounters

	originals memo[*originalRun]
	judges    memo[*judge]
}

// NewValidator makes a Validator. The backend and the repository stay the caller's to close.
func NewValidator(backend sandbox.Backend, repo *Repo, opts Options) *Validator {
	if opts.Timeout <= 0 {
		opts.Timeout = DefaultTimeout
	}
	if opts.Parallel <= 0 {
		opts.Parallel = runtime.GOMAXPROCS(0)
	}
	return &Validator{backend: backend, repo: repo, opts: opts, slots: make(chan struct{}, opts.Parallel)}
}

// Runs reports how many sandboxes the Validator has used so far.
func (v *Validator) Runs() Runs {
	return Runs{v.counters.scripts.Load(), v.counters.parsers.Load(), v.counters.reused.Load()}
}

// checkOrder is the order of the seven checks (paper section 2.3).
var checkOrder = []CheckName{
	CheckTestFiles, CheckParser, CheckScript, CheckScope, CheckBug, CheckWeakening, CheckInverseMutation,
}

// validation is one artifact on its way through the checks.
type validation struct {
	v   *Validator
	a   Artifact
	req Requirements

	files    []string // oracle test files
	original *originalRun
	bug      *Patch
	buggy    overlay
	underBug results
	failing  []string // F: passed on the original, not under the bug; sorted
}

// Validate runs the seven checks in order and stops at the first that refuses
// (paper section 2.3). Every outcome of the artifact is a report; an error
// means that the infrastructure failed (it wraps sandbox.ErrInfrastructure) or
// that ctx ended.
func (v *Validator) Validate(ctx context.Context, a Artifact, req Requirements) (Report, error) {
	val := &validation{v: v, a: a, req: req}
	run := []func(context.Context) (expected, seen string, err error){
		val.testFiles, val.parser, val.script, val.scope, val.bugFails, val.weakening, val.inverseMutation,
	}
	report := Report{FailToPass: []string{}, PassToPass: []string{}}
	stopped := false
	for i, name := range checkOrder {
		check := Check{Name: name}
		if !stopped {
			expected, seen, err := run[i](ctx)
			ok := err == nil
			if err != nil {
				var refused *refusal
				if !errors.As(err, &refused) {
					return Report{}, fmt.Errorf("validate, check %s: %w", name, err)
				}
				seen, stopped = refused.seen, true
			}
			check.OK, check.Expected, check.Seen = &ok, expected, seen
		}
		report.Checks = append(report.Checks, check)
	}
	if stopped {
		return report, nil
	}
	report.Valid = true
	report.FailToPass = val.failing
	for _, id := range val.original.results.passing() {
		if !slices.Contains(val.failing, id) {
			report.PassToPass = append(report.PassToPass, id)
		}
	}
	return report, nil
}

// refusal is a check that the artifact fails.
type refusal struct{ seen string }

func (r *refusal) Error() string { return r.seen }

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// asRefusal turns what the artifact is to blame for into a refusal and leaves
// every other error as it is.
func asRefusal(err error) error {
	var bad *badRun
	if err != nil && (isOutcome(err) || errors.As(err, &bad)) {
		return &refusal{err.Error()}
	}
	return err
}

func (c *validation) testFiles(context.Context) (expected, seen string, err error) {
	expected = "every listed file exists in the original, the weakening touches only listed files, the injection none of them"
	c.files, err = c.a.TestFileList()
	if err != nil {
		return expected, "", asRefusal(err)
	}
	for _, name := range c.files {
		if e, ok := c.v.repo.base[name]; !ok || !e.mode.IsRegular() {
			return expected, "", refuse("%s is no file of the original", name)
		}
	}
	// A diff that cannot be read is the business of the check it is for.
	if weaken, err := parsePatch(c.a.TestWeaken); err == nil {
		for _, name := range weaken.Paths() {
			if !slices.Contains(c.files, name) {
				return expected, "", refuse("the weakening touches %s, which is not listed", name)
			}
		}
	}
	if bug, err := parsePatch(c.a.BugInject); err == nil {
		for _, name := range bug.Paths() {
			if slices.Contains(c.files, name) {
				return expected, "", refuse("the injection touches the test file %s", name)
			}
		}
	}
	return expected, fmt.Sprintf("%d test files", len(c.files)), nil
}

// originalRun is what a script and a parser did on the original tree.
type originalRun struct {
	logBytes  int   // of the first run
	parserErr error // a *badRun or *refusal: why check 2 refuses
	scriptErr error // likewise check 3, thresholds apart
	results   results
}

func (c *validation) parser(ctx context.Context) (expected, seen string, err error) {
	expected = `JSON {"id": "passed"|"failed"} from the log, the same twice, and from an empty and a truncated log`
	c.original, err = c.v.runOriginal(ctx, c.a)
	if err != nil {
		return expected, "", err
	}
	return expected, fmt.Sprintf("%d tests in a log of %d bytes", len(c.original.results), c.original.logBytes), asRefusal(c.original.parserErr)
}

func (c *validation) script(context.Context) (expected, seen string, err error) {
	expected = fmt.Sprintf("at least %d tests on the original, all passing, the same twice, each run within %v", c.req.MinPassingTests, c.v.opts.Timeout)
	if c.original.scriptErr != nil {
		return expected, "", asRefusal(c.original.scriptErr)
	}
	n := len(c.original.results)
	if n < c.req.MinPassingTests || n == 0 {
		return expected, "", refuse("%d tests", n)
	}
	return expected, fmt.Sprintf("%d tests, all passing, twice", n), nil
}

// runOriginal does the runs of checks 2 and 3, or remembers them.
func (v *Validator) runOriginal(ctx context.Context, a Artifact) (*originalRun, error) {
	if !v.opts.ReuseOriginal {
		return v.measureOriginal(ctx, a)
	}
	key := string(a.TestScript) + "\x00" + string(a.TestParser)
	o, remembered, err := v.originals.do(ctx, key, func() (*originalRun, bool, error) {
		o, err := v.measureOriginal(uncounted(ctx), a)
		return o, err == nil && !transient(o.parserErr) && !transient(o.scriptErr), err
	})
	if remembered {
		v.counters.reused.Add(2)
	}
	return o, err
}

// transient reports whether trying again could end differently.
func transient(err error) bool {
	var bad *badRun
	return errors.As(err, &bad) && bad.transient
}

// brokenLogBytes is how much of the log of a script that hung or flooded is
// given to the parser.
const brokenLogBytes = 64 << 10

// measureOriginal runs the script twice on the original, each in its own
// sandbox, and puts the parser to its tests.
func (v *Validator) measureOriginal(ctx context.Context, a Artifact) (*originalRun, error) {
	tree, err := v.repo.plainTree(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tree.Release()
	var logs [2][]byte
	var scriptErrs [2]error
	err = v.inParallel(2, func(i int) error {
		logs[i], scriptErrs[i] = v.runScript(ctx, tree, a.TestScript)
		if scriptErrs[i] != nil { // the script's fault is not to become the parser's
			logs[i] = logs[i][:min(len(logs[i]), brokenLogBytes)]
		}
		return onlyInfrastructure(scriptErrs[i])
	})
	if err != nil {
		return nil, err
	}
	inputs := [][]byte{logs[0], logs[0], nil, truncated(logs[0]), logs[1]}
	parsed := make([]results, len(inputs))
	parseErrs := make([]error, len(inputs))
	parse := func(i int) error {
		parsed[i], parseErrs[i] = v.runParser(ctx, a.TestParser, inputs[i])
		return onlyInfrastructure(parseErrs[i])
	}
	// A parser that fails at once, or hangs, is not asked four times more.
	if err := parse(0); err != nil {
		return nil, err
	}
	if parseErrs[0] != nil {
		return &originalRun{logBytes: len(logs[0]), parserErr: parseErrs[0]}, nil
	}
	if err := v.inParallel(len(inputs)-1, func(i int) error { return parse(i + 1) }); err != nil {
		return nil, err
	}
	o := &originalRun{logBytes: len(logs[0]), results: parsed[0]}
	for i, on := range []string{"", "", "on an empty log, ", "on a truncated log, "} {
		var bad *badRun
		if o.parserErr == nil && errors.As(parseErrs[i], &bad) {
			o.parserErr = &badRun{on + bad.seen, bad.transient}
		}
	}
	if o.parserErr == nil && !maps.Equal(parsed[0], parsed[1]) {
		o.parserErr = refuse("two answers to the same log: %s", differences(parsed[0], parsed[1]))
	}
	if invented := parsed[2].passing(); o.parserErr == nil && len(invented) > 0 {
		// Or a run that ends at once would pass.
		o.parserErr = refuse("on an empty log, passing tests: %s", some(invented))
	}
	switch failing := parsed[0].failing(); {
	case scriptErrs[0] != nil:
		o.scriptErr = scriptErrs[0]
	case scriptErrs[1] != nil:
		o.scriptErr = scriptErrs[1]
	case parseErrs[4] != nil:
		o.scriptErr = parseErrs[4]
	case len(failing) > 0:
		o.scriptErr = refuse("%d of %d tests fail on the original: %s", len(failing), len(parsed[0]), some(failing))
	case !maps.Equal(parsed[0], parsed[4]):
		o.scriptErr = refuse("two runs differ: %s", differences(parsed[0], parsed[4]))
	}
	return o, nil
}

// onlyInfrastructure drops outcomes, which are not errors of the host.
func onlyInfrastructure(err error) error {
	var bad *badRun
	if errors.As(err, &bad) {
		return nil
	}
	return err
}

// inParallel runs f(0), …, f(n-1), as many at once as there are sandboxes, and returns
// the first error. All have ended when it returns.
func (v *Validator) inParallel(n int, f func(i int) error) error {
	var g errgroup.Group
	g.SetLimit(cap(v.slots)) // each has a tree prepared, and an injection may have 500 files
	for i := range n {
		g.Go(func() error { return f(i) })
	}
	return g.Wait()
}

// truncated is the first half of a log, cut between characters.
func truncated(log []byte) []byte {
	n := len(log) / 2
	for n > 0 && !utf8.RuneStart(log[n]) {
		n--
	}
	return log[:n]
}

// evaluate runs the artifact's script and parser on a tree.
func (c *validation) evaluate(ctx context.Context, o overlay) (results, error) {
	if len(o) == 0 && c.v.opts.ReuseOriginal {
		c.v.counters.reused.Add(1)
		return c.original.results, nil
	}
	_, res, err := c.v.runTree(ctx, o, c.a)
	return res, err
}

func (c *validation) scope(ctx context.Context) (expected, seen string, err error) {
	least := max(c.req.MinChangedFiles, 1)
	expected = fmt.Sprintf("a diff that applies to the original and changes at least %d files", least)
	c.bug, err = ParsePatch(c.a.BugInject)
	if err == nil {
		c.buggy, err = c.v.repo.apply(ctx, nil, c.bug)
	}
	if err != nil {
		return expected, "", asRefusal(err)
	}
	why, err := c.v.repo.steeringInjection(c.bug, c.files)
	if err != nil {
		return expected, "", err
	}
	if why != "" {
		return expected, "", refuse("%s", why)
	}
	changed := 0
	for _, p := range c.bug.Split() {
		if slices.ContainsFunc(p.Paths(), func(name string) bool { _, ok := c.buggy[name]; return ok }) {
			changed++
		}
	}
	if changed < least {
		return expected, "", refuse("%d files", changed)
	}
	return expected, fmt.Sprintf("%d files", changed), nil
}

func (c *validation) bugFails(ctx context.Context) (expected, seen string, err error) {
	least := max(c.req.MinFailingTests, 1)
	expected = fmt.Sprintf("at least %d tests that passed now fail", least)
	c.underBug, err = c.evaluate(ctx, c.buggy)
	if err != nil {
		return expected, "", asRefusal(err)
	}
	for _, id := range c.original.results.passing() {
		if !c.underBug[id] { // failed, or vanished
			c.failing = append(c.failing, id)
		}
	}
	if len(c.failing) < least {
		return expected, "", refuse("%d tests", len(c.failing))
	}
	return expected, fmt.Sprintf("%d of %d tests", len(c.failing), len(c.original.results)), nil
}

func (c *validation) weakening(ctx context.Context) (expected, seen string, err error) {
	expected = "with both diffs applied, at least 1 of the failing tests passes or is gone from the run"
	o, err := c.v.repo.applyDiff(ctx, c.buggy, TestWeakenName, c.a.TestWeaken)
	if err != nil {
		return expected, "", asRefusal(err)
	}
	weakened, err := c.evaluate(ctx, o)
	if err != nil {
		return expected, "", asRefusal(err)
	}
	hidden := 0
	for _, id := range c.failing {
		_, ranUnderBug := c.underBug[id]
		passed, runs := weakened[id]
		// A test that the bug alone made vanish was not hidden by the weakening.
		if passed || ranUnderBug && !runs {
			hidden++
		}
	}
	if hidden == 0 {
		return expected, "", refuse("all %d still fail", len(c.failing))
	}
	return expected, fmt.Sprintf("%d of %d", hidden, len(c.failing)), nil
}

func (c *validation) inverseMutation(ctx context.Context) (expected, seen string, err error) {
	expected = "reverting any one file of the injection makes at least 1 of the failing tests pass"
	parts := c.bug.Split()
	repaired := make([]int, len(parts))
	outcomes := make([]error, len(parts))
	err = c.v.inParallel(len(parts), func(i int) error {
		reverted := parts[i].Paths()
		o := c.buggy.without(func(name string) bool { return slices.Contains(reverted, name) })
		res, err := c.evaluate(ctx, o)
		if err != nil {
			outcomes[i] = asRefusal(err)
			var refused *refusal
			if errors.As(outcomes[i], &refused) {
				return nil
			}
			return err
		}
		for _, id := range c.failing {
			if res[id] {
				repaired[i]++
			}
		}
		return nil
	})
	if err != nil {
		return expected, "", err
	}
	for i, p := range parts {
		name := strings.Join(p.Paths(), " and ")
		if outcomes[i] != nil {
			return expected, "", refuse("with %s reverted, %v", name, outcomes[i])
		}
		if repaired[i] == 0 {
			return expected, "", refuse("with %s reverted, none of %d failing tests passes", name, len(c.failing))
		}
	}
	return expected, fmt.Sprintf("%d files, each needed", len(parts)), nil
}
