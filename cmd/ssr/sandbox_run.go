package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
)

type sandboxCmd struct {
	Exec    sandboxExecCmd    `cmd:"" help:"Run a command on a private copy of a folder; ends with its status."`
	Harvest sandboxHarvestCmd `cmd:"" help:"Print what an agent changed in a folder as a patch, running nothing of its."`
	Bench   sandboxBenchCmd   `cmd:"" help:"Measure a backend beside the plain tools."`
	Doctor  sandboxDoctorCmd  `cmd:"" help:"Report what each backend can enforce here."`
	Sweep   sandboxSweepCmd   `cmd:"" help:"Remove the sandboxes of trainers that no longer run."`
}

// Exit statuses of "sandbox exec" where the command has none of its own, as
// timeout(1) and the shell have them.
const (
	exitTimedOut = 124
	exitSignal   = 128 // plus the signal
)

// byteSize is a number of bytes with an optional K, M or G (powers of 1024).
type byteSize int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *byteSize) UnmarshalText(text []byte) error {
	digits := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(string(text)), "B"), "I")
	shift := 0
	if i := strings.IndexAny(digits, "KMG"); i >= 0 && i == len(digits)-1 {
		shift = 10 * (1 + strings.IndexByte("KMG", digits[i]))
		digits = digits[:i]
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return fmt.Errorf("%q is no size; write it like 512M", text)
	}
	*b = byteSize(n << shift)
	return nil
}

// limitTime is a duration, or a bare number of seconds.
type limitTime time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *limitTime) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	if n, e := strconv.ParseUint(string(text), 10, 31); e == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is no time; write it like 30s", text)
	}
	*t = limitTime(d)
	return nil
}

type sandboxExecCmd struct {
	sandboxFlags
	systemFlags
	Workspace string            `required:"" type:"existingdir" help:"The folder to run on; the command gets a copy."`
	Write     bool              `help:"Carry what the command changed over into the workspace."`
	Dir       string            `help:"Folder to run in, relative to the workspace."`
	Env       map[string]string `help:"Environment of the command, beside PATH, HOME, LANG and TMPDIR." mapsep:"none"`
	Stdin     bool              `help:"Give the command this command's input; by default it has none."`
	Timeout   limitTime         `default:"120s" help:"Wall-clock limit."`
	CPU       limitTime         `name:"cpu" default:"240s" help:"Limit of processor time."`
	Memory    byteSize          `default:"2G" help:"Memory limit."`
	Pids      int               `default:"256" help:"Processes and threads at once."`
	Disk      byteSize          `default:"512M" help:"How much the workspace and /tmp may grow."`
	FileSize  byteSize          `default:"256M" help:"Largest file."`
	OpenFiles int               `default:"1024" help:"Open files of a process."`
	Output    byteSize          `default:"8M" help:"Most that is printed; more ends the command."`
	Command   []string          `arg:"" help:"The command, after --."`
	jsonFlag
}

// execution is the result of "sandbox exec --json".
type execution struct {
	Exit        int     `json:"exit"`
	Signal      int     `json:"signal,omitempty"`
	TimedOut    bool    `json:"timed_out"`
	Truncated   bool    `json:"truncated"`
	DiskFull    bool    `json:"disk_full"`
	OutOfMemory bool    `json:"out_of_memory"`
	WallSeconds float64 `json:"wall_seconds"`
	CPUSeconds  float64 `json:"cpu_seconds"`
	Stdout      string  `json:"stdout"`
	Stderr      string  `json:"stderr"`
	// Changed counts the paths of the workspace that were written back, Refused
	// lists those that were not; both only with --write.
	Changed *int              `json:"changed,omitempty"`
	Refused []sandbox.Refusal `json:"refused,omitempty"`
}

func (c *sandboxExecCmd) Run(ctx context.Context, o output) (err error) {
	config, done, err := c.complete(c.config())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	b, err := config.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	box, err := b.Start(ctx, sandbox.Spec{Dir: c.Workspace, Env: c.Env, Owner: "ssr-sandbox-exec", Limits: sandbox.Limits{
		Lifetime: time.Duration(c.Timeout) + time.Minute, Command: time.Duration(c.Timeout), CPU: time.Duration(c.CPU), Memory: int64(c.Memory), Processes: c.Pids,
		FileSize: int64(c.FileSize), Disk: int64(c.Disk), OpenFiles: c.OpenFiles, Output: int64(c.Output),
	}})
	if err != nil {
		return err
	}
	cmd := sandbox.Cmd{Args: c.Command, Dir: c.Dir}
	if c.Stdin {
		cmd.Stdin = os.Stdin
	}
	r, err := box.Exec(ctx, cmd)
	if err != nil {
		return err
	}
	var changed *int
	var refused []sandbox.Refusal
	if c.Write {
		changes, err := box.Harvest(ctx)
		if err != nil {
			return err
		}
		if refused, err = sandbox.Apply(c.Workspace, changes); err != nil {
			return err
		}
		n := len(changes) - len(refused)
		changed = &n
	}
	if c.JSON {
		err = printJSON(o.out, execution{
			Exit: r.Exit, Signal: r.Signal, TimedOut: r.TimedOut, Truncated: r.Truncated, DiskFull: r.DiskFull, OutOfMemory: r.OutOfMemory,
			WallSeconds: r.Wall.Seconds(), CPUSeconds: r.CPU.Seconds(),
			Stdout: strings.ToValidUTF8(string(r.Stdout), "\uFFFD"), Stderr: strings.ToValidUTF8(string(r.Stderr), "\uFFFD"),
			Changed: changed, Refused: refused,
		})
	} else {
		err = c.print(o, r, refused)
	}
	if err != nil {
		return err
	}
	if status := statusOf(r); status != 0 {
		return exitStatus(status)
	}
	return nil
}

// print passes the command's streams on and says what ended it.
func (c *sandboxExecCmd) print(o output, r sandbox.Result, refused []sandbox.Refusal) error {
	if _, err := o.out.Write(r.Stdout); err != nil {
		return err
	}
	if _, err := o.err.Write(r.Stderr); err != nil {
		return err
	}
	for _, end := range []struct {
		is   bool
		what string
	}{
		{r.TimedOut, fmt.Sprintf("ended after %v; see --timeout", time.Duration(c.Timeout))},
		{r.Truncated, fmt.Sprintf("printed more than %d bytes; see --output", c.Output)},
		{r.DiskFull, fmt.Sprintf("wrote more than %d bytes; see --disk", c.Disk)},
		{r.OutOfMemory, fmt.Sprintf("used more than %d bytes of memory; see --memory", c.Memory)},
	} {
		if end.is {
			fmt.Fprintf(o.err, "ssr: the command %s\n", end.what)
		}
	}
	printRefused(o, refused)
	return nil
}

func printRefused(o output, refused []sandbox.Refusal) {
	for _, r := range refused {
		fmt.Fprintf(o.err, "ssr: left out %s: %s\n", ui.Printable(r.Path), r.Reason)
	}
}

// statusOf is the status that "sandbox exec" ends with.
func statusOf(r sandbox.Result) int {
	switch {
	case r.TimedOut:
		return exitTimedOut
	case r.Signal > 0:
		return exitSignal + r.Signal
	case r.Exit == 0 && !r.OK():
		return exitSignal + 9 // a limit ended what was left of it
	}
	return r.Exit
}

type sandboxHarvestCmd struct {
	Workspace string `required:"" type:"existingdir" help:"The folder that an agent has had; nothing may be writing it."`
	Base      string `required:"" type:"existingdir" placeholder:"TREE" help:"The folder as it was before."`
	jsonFlag
}

// Run prints a git diff. Links are not followed, no .git is read, no program is
// run, and every quantity is bounded.
func (c *sandboxHarvestCmd) Run(ctx context.Context, o output) error {
	base, err := harvest.Record(c.Base)
	if err != nil {
		return err
	}
	changes, err := base.Changes(ctx, c.Workspace, harvest.Bounds{})
	if err != nil {
		return err
	}
	patch, refused, err := sandbox.Diff(c.Base, changes)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o.out, map[string]any{"patch": strings.ToValidUTF8(string(patch), "\uFFFD"), "refused": append([]sandbox.Refusal{}, refused...)})
	}
	printRefused(o, refused)
	_, err = o.out.Write(patch)
	return err
}
