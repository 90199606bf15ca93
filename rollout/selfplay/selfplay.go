// Package selfplay is the game of Self-play SWE-RL (arXiv 2512.18552): an
// injector breaks a repository and hides the break by weakening its tests; a
// solver repairs it from the reverse of the weakening.
package selfplay

// Artifact is a bug as an injector submits it (paper section 2.2): five files.
type Artifact struct {
	TestScript []byte // test_script.sh
	TestFiles  []byte // test_files.txt, one relative path a line
	TestParser []byte // test_parser.py
	BugInject  []byte // bug_inject.diff, over code files only
	TestWeaken []byte // test_weaken.diff, over test files only
}

// CheckName names one of the seven validation checks, in their order.
type CheckName string

const (
	CheckTestFiles       CheckName = "test_files"
	CheckParser          CheckName = "parser"
	CheckScript          CheckName = "script"
	CheckScope           CheckName = "scope"
	CheckBug             CheckName = "bug"
	CheckWeakening       CheckName = "weakening"
	CheckInverseMutation CheckName = "inverse_mutation"
)

// Check is one line of a validation report. OK is nil when it was not reached.
type Check struct {
	Name     CheckName `json:"name"`
	OK       *bool     `json:"ok"`
	Expected string    `json:"expected"`
	Seen     string    `json:"seen"`
}

// Report is the result of validating an artifact.
type Report struct {
	Valid      bool     `json:"valid"`
	Checks     []Check  `json:"checks"`
	FailToPass []string `json:"fail_to_pass"`
	PassToPass []string `json:"pass_to_pass"`
}

// Refusal is the name of the first failed check, "" when valid.
func (r Report) Refusal() CheckName {
	for _, c := range r.Checks {
		if c.OK != nil && !*c.OK {
			return c.Name
		}
	}
	return ""
}

// TestStatus is what a verdict saw of one test.
type TestStatus string

const (
	Passed  TestStatus = "passed"
	Failed  TestStatus = "failed"
	Missing TestStatus = "missing"
)

// Verdict says whether a patch solves a bug: every fail-to-pass and
// pass-to-pass test is present and passed.
type Verdict struct {
	Solved bool                  `json:"solved"`
	Reason string                `json:"reason"`
	Tests  map[string]TestStatus `json:"tests"`
	// Unknown are tests of the run that the artifact's report does not know.
	Unknown []string `json:"unknown,omitempty"`
}

// Requirements are the thresholds of validation.
type Requirements struct {
	MinPassingTests int `json:"min_passing_tests" yaml:"min_passing_tests"`
	MinChangedFiles int `json:"min_changed_files" yaml:"min_changed_files"`
	MinFailingTests int `json:"min_failing_tests" yaml:"min_failing_tests"`
}
