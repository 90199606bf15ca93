package selfplay

import (
	"regexp"
	"slices"
	"strings"
)

// Normaliser rewrites the parts of a tool's output that differ from run to run,
// so that the same seed gives the same tokens.
type Normaliser struct {
	rules      []rule
	complaints bool // order those of a pipeline
}

type rule struct {
	pattern *regexp.Regexp
	with    string
}

// Rule is one rewriting: every match of the regular expression Pattern (RE2)
// becomes With, in which $1 is the first group.
type Rule struct {
	Pattern string `json:"pattern" yaml:"pattern"`
	With    string `json:"with" yaml:"with"`
}

// DefaultRules cover durations as test runners print them (0.003s, in 1.23 s,
// 12.5ms, (7 ms), 0m0.004s), addresses of the stack, the heap and Go's heap,
// the times that ls -l and diff -u show of files just written, and names of
// temporary files. Whole numbers outside parentheses are left
// alone: they are more often code than durations.
var DefaultRules = []Rule{
	{`\b\d+m\d+\.\d+s\b`, "0m0.000s"},
	{`\b\d+\.\d+( ?)(s|ms|µs|us|ns|secs?|seconds?)\b`, "0.000${1}${2}"},
	{`\((\d+)( ?)(s|ms|µs|us|ns)\)`, "(0${2}${3})"},
	{`\b0x(?:7[0-9a-f]|5[56])[0-9a-f]{10}\b`, "0x7f0000000000"},
	{`\b0xc0[0-9a-f]{8}\b`, "0xc000000000"},
	{`(?m)^([bcdlps-][rwxsStT-]{9}\S*\s+\d+\s+\S+\s+\S+\s+\d+) [A-Z][a-z]{2} [ \d]\d \d\d:\d\d `, "${1} Jan  1 00:00 "},
	{`\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9} [+-]\d{4}`, "2000-01-01 00:00:00.000000000 +0000"},
	{`/tmp/tmp[a-z0-9_]{8}\b`, "/tmp/tmp00000000"},
	{`/tmp/tmp\.[A-Za-z0-9]{10}\b`, "/tmp/tmp.0000000000"},
}

// DefaultNormaliser applies DefaultRules, and orders what several programs in a
// row complain about: those of a pipeline run side by side, and which is heard
// first is up to the kernel.
func DefaultNormaliser() *Normaliser { return defaultNormaliser }

var defaultNormaliser = func() *Normaliser {
	n, err := NewNormaliser(DefaultRules)
	if err != nil {
		panic(err)
	}
	n.complaints = true
	return n
}()

// NewNormaliser compiles rules, which apply in their order.
func NewNormaliser(rules []Rule) (*Normaliser, error) {
	n := &Normaliser{}
	for _, r := range rules {
		re, err := regexp.Compile(r.Pattern)
		if err != nil {
			return nil, err
		}
		n.rules = append(n.rules, rule{re, r.With})
	}
	return n, nil
}

// Rewrite applies the rules to s.
func (n *Normaliser) Rewrite(s string) string {
	for _, r := range n.rules {
		s = r.pattern.ReplaceAllString(s, r.with)
	}
	if n.complaints {
		s = orderComplaints(s)
	}
	return s
}

// complaint is a line such as "grep: x: No such file or directory".
var complaint = regexp.MustCompile(`^([a-z][\w.+-]*): .*(?:No such file or directory|command not found|Permission denied|Is a directory|Not a directory|Broken pipe)$`)

// orderComplaints sorts adjacent complaints by program; each program's own stay
// in their order.
func orderComplaints(s string) string {
	lines := strings.Split(s, "\n")
	program := func(line string) string {
		if m := complaint.FindStringSubmatch(line); m != nil {
			return m[1]
		}
		return ""
	}
	for from := 0; from < len(lines); {
		to := from
		for to < len(lines) && program(lines[to]) != "" {
			to++
		}
		slices.SortStableFunc(lines[from:to], func(a, b string) int { return strings.Compare(program(a), program(b)) })
		from = to + 1
	}
	return strings.Join(lines, "\n")
}
