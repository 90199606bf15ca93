package environment

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// Report says how a repository's tests behave in an environment.
type Report struct {
	Runs int `json:"runs"`
	// Exits counts the runs by exit status, -1 for those that a signal or a limit ended.
	Exits map[int]int `json:"exits"`
	// Limits counts the runs that a limit ended.
	Limits int `json:"limits"`
	// Passing and Failing count the tests that did so in every run.
	Passing int `json:"passing"`
	Failing int `json:"failing"`
	// Unstable tests passed in some runs and failed or were missing in others.
	Unstable []string `json:"unstable"`
	// Seconds of wall clock of a run, and of processor at the median.
	Fastest    float64 `json:"fastest_seconds"`
	Median     float64 `json:"median_seconds"`
	Slowest    float64 `json:"slowest_seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
	// Bytes of the system that the environment shows, 0 where it is unknown.
	Bytes int64 `json:"bytes,omitempty"`
	// Output is the end of the last run that failed.
	Output string `json:"output,omitempty"`
}

// Flaky reports whether two runs differed.
func (r Report) Flaky() bool { return len(r.Exits) > 1 || len(r.Unstable) > 0 }

// OK reports that every run succeeded and none differed.
func (r Report) OK() bool { return !r.Flaky() && r.Exits[0] == r.Runs && r.Limits == 0 }

// maxOutput is how much of a failing run is kept, in bytes.
const maxOutput = 4 << 10

// Check runs a command on fresh copies of spec.Dir and compares the runs. Tests
// are told apart where the command prints them as pytest (-v or -rA), unittest
// (-v) or go test (-v) do.
func Check(ctx context.Context, b sandbox.Backend, spec sandbox.Spec, cmd sandbox.Cmd, runs int) (Report, error) {
	r := Report{Runs: runs, Exits: map[int]int{}, Unstable: []string{}}
	var walls, cpus []time.Duration
	passed, failed := map[string]int{}, map[string]int{}
	for i := range runs {
		res, err := once(ctx, b, spec, cmd)
		if err != nil {
			return r, fmt.Errorf("run %d of %d: %w", i+1, runs, err)
		}
		r.Exits[res.Exit]++
		if res.TimedOut || res.Truncated || res.DiskFull || res.OutOfMemory {
			r.Limits++
		}
		out := append(slices.Clone(res.Stdout), res.Stderr...)
		if !res.OK() {
			r.Output = string(out[max(0, len(out)-maxOutput):])
		}
		for test, ok := range readTests(out) {
			if ok {
				passed[test]++
			} else {
				failed[test]++
			}
		}
		walls, cpus = append(walls, res.Wall), append(cpus, res.CPU)
	}
	for test, n := range passed {
		if n == runs {
			r.Passing++
		} else {
			r.Unstable = append(r.Unstable, test)
		}
	}
	for test, n := range failed {
		switch {
		case n == runs:
			r.Failing++
		case passed[test] == 0:
			r.Unstable = append(r.Unstable, test)
		}
	}
	slices.Sort(r.Unstable)
	slices.Sort(walls)
	slices.Sort(cpus)
	if runs > 0 {
		r.Fastest, r.Median, r.Slowest = walls[0].Seconds(), walls[runs/2].Seconds(), walls[runs-1].Seconds()
		r.CPUSeconds = cpus[runs/2].Seconds()
	}
	return r, nil
}

func once(ctx context.Context, b sandbox.Backend, spec sandbox.Spec, cmd sandbox.Cmd) (sandbox.Result, error) {
	s, err := b.Start(ctx, spec)
	if err != nil {
		return sandbox.Result{}, err
	}
	defer s.Close()
	return s.Exec(ctx, cmd)
}

// testLines are how runners print one test; group 1 or 2 is its status.
var testLines = []struct {
	*regexp.Regexp
	name, status int
}{
	{regexp.MustCompile(`(?m)^(PASSED|FAILED|ERROR) (\S+::\S.*?)(?: - .*)?$`), 2, 1},        // pytest -rA
	{regexp.MustCompile(`(?m)^(\S+::\S.*?) (PASSED|FAILED|ERROR)(?: +\[ *\d+%\])?$`), 1, 2}, // pytest -v
	{regexp.MustCompile(`(?m)^(\w+ \([\w.]+\))(?:\n.*)? \.\.\. (ok|FAIL|ERROR)$`), 1, 2},    // unittest -v
	{regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL): (\S+) \([\d.]+s\)$`), 2, 1},               // go test -v
}

// readTests maps each test that a log names to whether it passed.
func readTests(log []byte) map[string]bool {
	tests := map[string]bool{}
	for _, l := range testLines {
		for _, m := range l.FindAllSubmatch(log, -1) {
			name, status := string(m[l.name]), string(m[l.status])
			ok := status == "PASSED" || status == "PASS" || status == "ok"
			if before, twice := tests[name]; twice {
				ok = ok && before
			}
			tests[name] = ok
		}
	}
	return tests
}
