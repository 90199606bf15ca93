package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ssr-go/ssr/internal/ui"
	"github.com/ssr-go/ssr/sandbox/bench"
	"github.com/ssr-go/ssr/sandbox/environment"
	"github.com/ssr-go/ssr/sandbox/local"
)

// systemFlags are those of commands for sandboxes alone, beside sandboxFlags.
type systemFlags struct {
	Rootfs   string `placeholder:"DIR|FILE.tar" help:"Root folder that local sandboxes show, or a tar file of one; by default this machine's system."`
	Launcher string `default:"" enum:",native,bwrap" placeholder:"native|bwrap" help:"What makes the namespaces of local sandboxes: native or bwrap; by default native where it works."`
}

// complete is c with these flags. done removes what was unpacked.
func (f systemFlags) complete(c sandboxConfig) (_ sandboxConfig, done func() error, err error) {
	done = func() error { return nil }
	c.Launcher, c.Rootfs = f.Launcher, f.Rootfs
	c, err = c.resolve()
	if err != nil || f.Rootfs == "" {
		return c, done, err
	}
	info, err := os.Stat(f.Rootfs)
	if err != nil || info.IsDir() {
		return c, done, err
	}
	// Sandboxes' users must be able to enter it.
	dir, err := os.MkdirTemp("", "ssr-rootfs-")
	if err != nil {
		return c, done, err
	}
	done = func() error { return os.RemoveAll(dir) }
	c.Rootfs = filepath.Join(dir, "root")
	if err = os.Chmod(dir, 0o711); err == nil {
		err = environment.UnpackRoot(f.Rootfs, c.Rootfs)
	}
	if err != nil {
		return c, done, errors.Join(err, done())
	}
	return c, done, nil
}

type sandboxBenchCmd struct {
	Rounds int           `default:"200" help:"Rounds of what is reported as a median."`
	Span   time.Duration `default:"5s" help:"Time for what is reported as a rate."`
	Alive  int           `default:"2000" help:"Sandboxes alive at once, for the memory of each."`
	Burst  int           `default:"1000" help:"Sandboxes created at once."`
	sandboxFlags
	systemFlags
	jsonFlag
}

func (c *sandboxBenchCmd) Run(ctx context.Context, o output) (err error) {
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
	options := bench.Options{Rounds: c.Rounds, Span: c.Span, Alive: c.Alive, Burst: c.Burst}
	if config.Backend == "docker" {
		options.Image, options.Runtime = config.Image, config.Runtime
	}
	if l, ok := b.(*local.Backend); ok && config.Backend == "local" {
		config.Launcher = local.LauncherNative
		if l.Launcher() == local.LauncherNative {
			config.Launcher = local.LauncherBwrap
		}
		other, missing := config.open()
		if missing != nil {
			fmt.Fprintf(o.err, "ssr: not measured: launcher %s: %v\n", config.Launcher, missing)
		} else {
			defer func() { err = errors.Join(err, other.Close()) }()
			options.Beside = other
		}
	}
	r, err := bench.Run(ctx, b, options)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o.out, r)
	}
	printBench(o, r)
	return nil
}

func printBench(o output, r bench.Report) {
	fmt.Fprintf(o.out, "%s, %d cores, load %.1f before and %.1f after\n", r.Backend, r.Cores, r.LoadBefore, r.LoadAfter)
	if r.Busy {
		fmt.Fprintln(o.out, "The machine was BUSY: these figures are not the backend's.")
	}
	times := func(name string, t *bench.Times) {
		if t != nil {
			fmt.Fprintf(o.out, "%-26s median %9.2f ms  p95 %9.2f ms  (%d)\n", name, t.Median, t.P95, t.Rounds)
		}
	}
	number := func(name string, v float64) {
		if v > 0 {
			fmt.Fprintf(o.out, "%-26s %16.2f\n", name, v)
		}
	}
	rows := []bench.Launched{r.Launched}
	rows[0].Launcher = cmp.Or(rows[0].Launcher, r.Backend)
	if r.Beside != nil {
		rows = append(rows, *r.Beside)
	}
	if r.Options.Image != "" {
		rows = append(rows, bench.Launched{Launcher: "docker run", Cold: r.PlainRun})
	} else {
		rows = append(rows, bench.Launched{Launcher: "bwrap from a shell", Cold: r.PlainCold, PerSecond: r.PlainPerSecond,
			AliveMiB: r.PlainAliveMiB, BurstSeconds: r.PlainBurstSeconds, Death: r.PlainDeath})
	}
	for _, l := range rows {
		fmt.Fprintf(o.out, "%s:\n", l.Launcher)
		times("create, true, destroy", l.Cold)
		number("created a second", l.PerSecond)
		number(fmt.Sprintf("MiB each of %d alive", r.Options.Alive), l.AliveMiB)
		number(fmt.Sprintf("s for %d at once", r.Options.Burst), l.BurstSeconds)
		times("death of 200 processes", l.Death)
	}
	fmt.Fprintln(o.out, "in a live sandbox:")
	times("bash -c true", r.Exec)
	times("  docker exec", r.PlainExec)
	number("execs a second", r.ExecPerSecond)
	times("workspace of 2,000 files", r.Workspace)
	times("  cp -a", r.PlainCopy)
	times("fork with 20 changes", r.Fork)
	times("harvest of 20 files", r.Harvest)
	times("  diff -rN", r.PlainDiff)
	for _, m := range r.Missing {
		fmt.Fprintf(o.err, "ssr: not measured: %s\n", m)
	}
}

type sandboxDoctorCmd struct{ jsonFlag }

func (c *sandboxDoctorCmd) Run(ctx context.Context, o output) error {
	ctx, cancel := context.WithTimeout(ctx, 2*doctorTimeout)
	defer cancel()
	return reportFindings(o, []finding{probeLocal(ctx), probeDocker(ctx)}, c.JSON)
}

type sandboxSweepCmd struct {
	Backend  string `default:"local" enum:"local,docker" help:"Sandbox backend: local or docker."`
	StateDir string `placeholder:"DIR" help:"State folder, where it is not the usual one."`
	jsonFlag
}

// Run says what it removes before it does.
func (c *sandboxSweepCmd) Run(ctx context.Context, o output) (err error) {
	config := sandboxConfig{Backend: c.Backend, StateDir: c.StateDir}
	if c.Backend == "docker" {
		config.Image = "none" // nothing is started
	}
	b, err := config.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	left, err := b.(*local.Backend).Leftovers()
	if err != nil {
		return err
	}
	n, err := b.Sweep(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(o.out, map[string]any{"swept": n, "leftovers": left})
	}
	for _, l := range left {
		fmt.Fprintf(o.out, "%s of %s (process %d), made %s\n", l.Dir, ui.Printable(l.Owner), l.Trainer, l.Created.Format(time.RFC3339))
	}
	fmt.Fprintf(o.out, "%d sandboxes removed\n", n)
	return nil
}
