package selfplay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ssr-go/ssr/model/token"
	"github.com/ssr-go/ssr/sandbox"
)

func (b *bench) bash(ctx context.Context, command string) (observation, error) {
	res, err := b.shell.Run(ctx, command)
	if err != nil {
		return observation{}, fmt.Errorf("run command: %w", err)
	}
	return observation{
		output: b.opts.Normaliser.Rewrite(clean(res.Stdout)),
		notice: b.notice(res),
	}, nil
}

// notice says how a command ended when it did not simply succeed.
func (b *bench) notice(res sandbox.Result) string {
	switch {
	case res.TimedOut:
		return fmt.Sprintf("killed after %v", b.opts.Limits.Command)
	case res.Truncated:
		return fmt.Sprintf("killed: more than %d bytes of output", b.opts.Limits.Output)
	case res.DiskFull:
		return "killed: the disk limit was reached"
	case res.OutOfMemory:
		return "killed: out of memory"
	case res.Signal != 0:
		return fmt.Sprintf("ended by signal %d", res.Signal)
	case res.Exit != 0:
		return fmt.Sprintf("exit status %d", res.Exit)
	}
	return ""
}

// clean makes output printable text: invalid UTF-8 is replaced, escape
// sequences and carriage-return overwrites are left as they are, NUL is dropped,
// and the final line ends go.
func clean(b []byte) string {
	s := strings.ToValidUTF8(string(bytes.ReplaceAll(b, []byte{0}, nil)), "\uFFFD")
	return strings.TrimRight(s, "\n")
}

// The scripts resolve links inside the sandbox and refuse what leads out of
// the workspace. Their exit statuses are theirs alone, below 125.
const (
	readScript = `r=$(realpath -e -- "$1" 2>/dev/null) || exit 93
case $r in "$2"/*) ;; *) exit 94;; esac
[ -f "$r" ] || exit 95
exec cat -- "$r"`
	// rewriteScript keeps the file's mode.
	rewriteScript = `exec cat > "$1"`
	createScript  = `if [ -e "$1" ] || [ -L "$1" ]; then exit 96; fi
d=$(dirname -- "$1")
r=$(realpath -m -- "$d") || exit 93
case $r/ in "$2"/*) ;; *) exit 94;; esac
mkdir -p -- "$d" && exec cat > "$1"`
)

func (b *bench) script(ctx context.Context, script, file string, stdin []byte) (sandbox.Result, error) {
	return b.box.Exec(ctx, sandbox.Cmd{
		Args:  []string{"bash", "-c", script, "bash", sandbox.Workdir + "/" + file, sandbox.Workdir},
		Stdin: bytes.NewReader(stdin),
	})
}

// fileProblem explains the exit status of the scripts above, nil for success.
func fileProblem(res sandbox.Result, file string) error {
	switch {
	case res.OK():
		return nil
	case res.Exit == 93:
		return fmt.Errorf("%s does not exist", file)
	case res.Exit == 94:
		return fmt.Errorf("%s is outside the workspace", file)
	case res.Exit == 95:
		return fmt.Errorf("%s is not a regular file", file)
	case res.Exit == 96:
		return fmt.Errorf("%s exists already; change it with edit", file)
	case res.Truncated:
		return fmt.Errorf("%s is too large", file)
	}
	return fmt.Errorf("cannot access %s: %s", file, strings.TrimSpace(clean(res.Stderr)))
}

func (b *bench) edit(ctx context.Context, body string) (observation, error) {
	file, search, replace, err := token.ParseEdit(body)
	if err == nil {
		file, err = workspacePath(file)
	}
	if err != nil {
		return problem(err), nil
	}
	res, err := b.script(ctx, readScript, file, nil)
	if err != nil {
		return observation{}, fmt.Errorf("read %s: %w", file, err)
	}
	if err := fileProblem(res, file); err != nil {
		return problem(err), nil
	}
	text, at, err := replaceOnce(string(res.Stdout), search, replace)
	if err != nil {
		return problem(fmt.Errorf("%w in %s", err, file)), nil
	}
	if res, err = b.script(ctx, rewriteScript, file, []byte(text)); err != nil {
		return observation{}, fmt.Errorf("write %s: %w", file, err)
	}
	if err := fileProblem(res, file); err != nil {
		return problem(err), nil
	}
	return observation{output: numbered(text, at, replace, b.opts.Prompts.EditContext)}, nil
}

func (b *bench) create(ctx context.Context, body string) (observation, error) {
	file, content, err := token.ParseCreate(body)
	if err == nil {
		file, err = workspacePath(file)
	}
	if err != nil {
		return problem(err), nil
	}
	res, err := b.script(ctx, createScript, file, []byte(content))
	if err != nil {
		return observation{}, fmt.Errorf("create %s: %w", file, err)
	}
	if err := fileProblem(res, file); err != nil {
		return problem(err), nil
	}
	return observation{output: fmt.Sprintf("created %s, %d lines", file, strings.Count(content, "\n"))}, nil
}

func problem(err error) observation { return observation{notice: "error: " + err.Error()} }

// replaceOnce puts replace where search stands in text and returns the byte
// offset of the change. search must occur exactly once; an occurrence that
// spans whole lines counts before those inside lines. Replacing whole lines by
// nothing removes their ends too.
func replaceOnce(text, search, replace string) (string, int, error) {
	var whole, inside []int
	for from := 0; ; {
		i := strings.Index(text[from:], search)
		if i < 0 {
			break
		}
		i += from
		end := i + len(search)
		if (i == 0 || text[i-1] == '\n') && (end == len(text) || text[end] == '\n') {
			whole = append(whole, i)
		} else {
			inside = append(inside, i)
		}
		from = i + 1
	}
	found := whole
	if len(whole) == 0 {
		found = inside
	}
	switch {
	case len(found) == 0:
		return "", 0, errors.New("the SEARCH text does not occur")
	case len(found) > 1:
		return "", 0, fmt.Errorf("the SEARCH text occurs %d times; add lines until it is unique", len(found))
	}
	at := found[0]
	rest := text[at+len(search):]
	if replace == "" && len(whole) > 0 {
		rest = strings.TrimPrefix(rest, "\n")
	}
	return text[:at] + replace + rest, at, nil
}

// numbered shows the lines of text that replace made up, at byte offset at,
// with around lines on either side, each with its number.
func numbered(text string, at int, replace string, around int) string {
	first := strings.Count(text[:at], "\n")
	last := first + strings.Count(replace, "\n")
	if replace == "" {
		last = first - 1
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	var out strings.Builder
	for i := max(0, first-around); i <= min(len(lines)-1, last+around); i++ {
		if out.Len() > 0 {
			out.WriteByte('\n')
		}
		fmt.Fprintf(&out, "%d\t%s", i+1, lines[i])
	}
	return out.String()
}
