package selfplay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/ssr-go/ssr/sandbox"
)

// Limits of what a test run may print and a parser may answer.
const (
	maxLogBytes    = 4 << 20
	maxParserBytes = 2 << 20
	maxTests       = 20_000
	maxTestID      = 1024
	parserTimeout  = 20 * time.Second
)

// Runs counts the sandboxes that a Validator has started.
type Runs struct {
	// Scripts and Parsers count runs of test scripts and of parsers.
	Scripts, Parsers int64
	// Reused counts runs of the original tree that were answered from memory.
	Reused int64
}

type runCounters struct{ scripts, parsers, reused atomic.Int64 }

// results maps a test's id to whether it passed.
type results map[string]bool

// passing lists the ids that passed, sorted.
func (r results) passing() []string {
	var ids []string
	for _, id := range slices.Sorted(maps.Keys(r)) {
		if r[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// badRun is an outcome: a script or parser that did not do its work.
type badRun struct {
	seen string
	// transient: another run could end differently (a deadline passed).
	transient bool
}

func (e *badRun) Error() string { return e.seen }

// runScript runs a test script on a tree in a fresh sandbox and returns what it
// printed, standard output and error in one stream. The script is handed over
// as an argument: there is no file that the code under test could rewrite.
// A run over its time, output or disk is a *badRun; its exit status is not
// judged, since only the parsed log counts (paper section 2.2).
func (v *Validator) runScript(ctx context.Context, tree *Tree, script []byte) ([]byte, error) {
	v.counters.scripts.Add(1)
	res, err := v.exec(ctx, tree.Dir, maxLogBytes, sandbox.Cmd{
		Args:    []string{"bash", "-c", scriptArgument(script), sandbox.Workdir + "/" + TestScriptName},
		Stdin:   bytes.NewReader(nil),
		Timeout: v.opts.Timeout,
	})
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", TestScriptName, err)
	}
	switch {
	case res.TimedOut:
		return res.Stdout, &badRun{fmt.Sprintf("the script ran past %v", v.opts.Timeout), true}
	case res.Truncated:
		return res.Stdout, &badRun{fmt.Sprintf("the script printed more than %d MiB", maxLogBytes>>20), false}
	case res.DiskFull:
		return res.Stdout, &badRun{"the script filled its disk", false}
	}
	return append(res.Stdout, res.Stderr...), nil
}

// bashSource is a script's way to find itself beside $0.
var bashSource = regexp.MustCompile(`\$\{BASH_SOURCE(?:\[0\])?([^\[\w])`)

// scriptArgument is a script as bash -c runs it like a file at the workspace's
// root: there BASH_SOURCE is unset, so $0 takes its place.
func scriptArgument(script []byte) string {
	text := bashSource.ReplaceAllString(string(script), "$${0$1")
	return "exec 2>&1\n" + strings.ReplaceAll(text, "$BASH_SOURCE", "$0")
}

// runParser turns a log into results in a sandbox of its own that holds only
// the parser. Anything but a normal exit with the agreed JSON is a *badRun.
func (v *Validator) runParser(ctx context.Context, parser, log []byte) (results, error) {
	dir, err := v.parserDir(ctx, parser)
	if err != nil {
		return nil, err
	}
	defer dir.Release()
	v.counters.parsers.Add(1)
	res, err := v.exec(ctx, dir.Dir, maxParserBytes, sandbox.Cmd{
		Args:    []string{"python3", "-I", TestParserName},
		Stdin:   bytes.NewReader(bytes.ToValidUTF8(log, []byte("\uFFFD"))),
		Timeout: min(parserTimeout, v.opts.Timeout),
	})
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", TestParserName, err)
	}
	switch {
	case res.TimedOut:
		return nil, &badRun{fmt.Sprintf("the parser ran past %v", min(parserTimeout, v.opts.Timeout)), true}
	case res.Truncated:
		return nil, &badRun{fmt.Sprintf("the parser printed more than %d MiB", maxParserBytes>>20), false}
	case !res.OK():
		return nil, &badRun{fmt.Sprintf("the parser ended with status %d, signal %d: %s", res.Exit, res.Signal, tail(res.Stderr)), false}
	}
	parsed, why := parseResults(res.Stdout)
	if why != "" {
		return nil, &badRun{"the parser printed " + why, false}
	}
	return parsed, nil
}

// exec runs one command in a fresh sandbox over dir.
func (v *Validator) exec(ctx context.Context, dir string, output int64, cmd sandbox.Cmd) (sandbox.Result, error) {
	select {
	case v.slots <- struct{}{}:
		defer func() { <-v.slots }()
	case <-ctx.Done():
		return sandbox.Result{}, context.Cause(ctx)
	}
	limits := v.opts.Limits
	limits.Lifetime = cmd.Timeout + 30*time.Second
	limits.Command = cmd.Timeout
	limits.Output = output
	sb, err := v.backend.Start(ctx, sandbox.Spec{Dir: dir, Frozen: true, Limits: limits, Owner: v.opts.Owner})
	if err != nil {
		return sandbox.Result{}, fmt.Errorf("start a sandbox: %w", err)
	}
	res, err := sb.Exec(ctx, cmd)
	// What the run printed counts only if its sandbox is known to be gone.
	if closeErr := sb.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("close a sandbox: %w", closeErr)
	}
	return res, err
}

// parserDir is a folder with the parser and nothing else.
func (v *Validator) parserDir(ctx context.Context, parser []byte) (*Tree, error) {
	o := overlay{TestParserName: {parser, 0o644}}
	return v.repo.prepare(ctx, "parser", o, func(dir string) error {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return hostError("prepare the parser", err)
		}
		if err := writeFile(dir+"/"+TestParserName, parser, 0o644); err != nil {
			return hostError("prepare the parser", err)
		}
		return fixTimes(dir)
	})
}

// parseResults reads {"id": "passed"|"failed", …} and nothing else; otherwise
// it says what is there instead. An id that occurs twice is refused.
func parseResults(data []byte) (results, string) {
	if !utf8.Valid(data) {
		return nil, "bytes that are not UTF-8"
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	token, err := dec.Token()
	if err != nil || token != json.Delim('{') {
		return nil, fmt.Sprintf("no JSON object but %.80q", data)
	}
	res := results{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, "broken JSON: " + err.Error()
		}
		id, ok := key.(string)
		if !ok || id == "" || len(id) > maxTestID {
			return nil, fmt.Sprintf("a test id that is empty or over %d bytes", maxTestID)
		}
		if _, twice := res[id]; twice {
			return nil, fmt.Sprintf("test %q twice", id)
		}
		value, err := dec.Token()
		if err != nil {
			return nil, "broken JSON: " + err.Error()
		}
		switch value {
		case "passed":
			res[id] = true
		case "failed":
			res[id] = false
		default:
			return nil, fmt.Sprintf("%.40q for test %q instead of \"passed\" or \"failed\"", fmt.Sprint(value), id)
		}
		if len(res) > maxTests {
			return nil, fmt.Sprintf("more than %d tests", maxTests)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, "broken JSON: " + err.Error()
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, "something behind the JSON object"
	}
	return res, ""
}

// tail is the end of an error output, short enough for a report.
func tail(data []byte) string {
	data = bytes.TrimSpace(data)
	if len(data) > 200 {
		data = append([]byte("…"), data[len(data)-200:]...)
	}
	return string(bytes.ToValidUTF8(data, []byte("\uFFFD")))
}

// failing lists the ids that did not pass, sorted.
func (r results) failing() []string {
	var ids []string
	for _, id := range slices.Sorted(maps.Keys(r)) {
		if !r[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// differences names some of the tests that two results disagree about.
func differences(a, b results) string { return some(disagreements(a, b)) }

// disagreements lists the tests that two results disagree about, sorted.
func disagreements(a, b results) []string {
	var ids []string
	for id, passed := range a {
		if other, ok := b[id]; !ok || other != passed {
			ids = append(ids, id)
		}
	}
	for id := range b {
		if _, ok := a[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// some lists at most three ids and how many more there are.
func some(ids []string) string {
	const most = 3
	if len(ids) <= most {
		return strings.Join(ids, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(ids[:most], ", "), len(ids)-most)
}
