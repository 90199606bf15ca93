//go:build linux

// Package bench measures a sandbox backend: how fast sandboxes come, work and
// go, and what they cost, beside the plain tools that they are made of.
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// Options size the measurement; zero fields mean the defaults of WithDefaults.
type Options struct {
	// Rounds of what is reported as a median.
	Rounds int
	// Span of what is reported as a rate.
	Span time.Duration
	// Files of the large workspace; Changed of them are changed for a harvest.
	Files, Changed int
	// Alive sandboxes at once for the memory of one, Burst creates at once.
	Alive, Burst int
	// Hostile is how many processes the tree has that must die.
	Hostile int
	// Workers side by side in rates.
	Workers int
	// Beside, which may be nil, is the same backend with another launcher. What a
	// launcher has a part in is measured of both, turn about.
	Beside sandbox.Backend `json:"-"`
	// Image and Runtime, where Image is not "", are those of the docker backend: what a
	// docker client does with them is then measured in place of bwrap.
	Image, Runtime string
}

// WithDefaults fills in what is not positive.
func (o Options) WithDefaults() Options {
	for _, f := range []struct {
		to *int
		n  int
	}{{&o.Rounds, 200}, {&o.Files, 2000}, {&o.Changed, 20}, {&o.Alive, 2000}, {&o.Burst, 1000}, {&o.Hostile, 200}, {&o.Workers, runtime.NumCPU()}} {
		if *f.to <= 0 {
			*f.to = f.n
		}
	}
	if o.Span <= 0 {
		o.Span = 5 * time.Second
	}
	o.Changed = min(o.Changed, o.Files)
	return o
}

// Times are the median and the 95th percentile of a number of rounds.
type Times struct {
	Median float64 `json:"median_ms"`
	P95    float64 `json:"p95_ms"`
	Rounds int     `json:"rounds"`
}

// Launched is what a backend's launcher has a part in.
type Launched struct {
	// Launcher is its name, where the backend has any.
	Launcher string `json:"launcher,omitempty"`
	// Cold is create, run "true" and destroy; PerSecond how often Options.Workers
	// side by side do it.
	Cold      *Times  `json:"cold,omitempty"`
	PerSecond float64 `json:"created_per_second,omitempty"`
	// AliveMiB is what each of Options.Alive idle sandboxes takes of the machine's
	// available memory, the workspace of one small file included.
	AliveMiB float64 `json:"alive_mib_each,omitempty"`
	// BurstSeconds until Options.Burst sandboxes, asked for at once, have run "true".
	BurstSeconds float64 `json:"burst_seconds,omitempty"`
	// Death is from the end of a command's time until its tree of
	// Options.Hostile processes is dead.
	Death *Times `json:"hostile_tree_death,omitempty"`
}

// Report is a measurement. What failed to run is absent and named in Missing.
// Plain figures are those of other tools for the same thing: bwrap, with all
// namespaces but without limits, a filter or a user of its own, from a shell.
type Report struct {
	Backend string  `json:"backend"`
	Cores   int     `json:"cores"`
	Options Options `json:"options"`
	// LoadBefore and LoadAfter are the load averages of the last minute. Busy: the
	// machine had other work at the start, and the times say little.
	LoadBefore float64 `json:"load_before"`
	LoadAfter  float64 `json:"load_after"`
	Busy       bool    `json:"busy"`

	Launched
	// Beside is the same of Options.Beside.
	Beside         *Launched `json:"beside,omitempty"`
	PlainCold      *Times    `json:"plain_bwrap,omitempty"`
	PlainPerSecond float64   `json:"plain_bwrap_per_second,omitempty"`
	// PlainAliveMiB is that of bwraps with an idle cat.
	PlainAliveMiB float64 `json:"plain_bwrap_alive_mib_each,omitempty"`
	// PlainBurstSeconds is that of a shell that starts as many bwraps at once.
	PlainBurstSeconds float64 `json:"plain_bwrap_burst_seconds,omitempty"`
	PlainDeath        *Times  `json:"plain_bwrap_tree_death,omitempty"`
	// PlainRun is "docker run --rm" of "true" without network, PlainExec "docker exec"
	// of bash -c true, each from a client of its own and without our limits.
	PlainRun  *Times `json:"plain_docker_run,omitempty"`
	PlainExec *Times `json:"plain_docker_exec,omitempty"`

	Exec          *Times  `json:"live_exec,omitempty"` // bash -c true
	ExecPerSecond float64 `json:"live_execs_per_second,omitempty"`
	// Workspace is a fresh large workspace of a folder that others have used
	// before, Fork one of a sandbox with Options.Changed changes, each without a
	// command; PlainCopy is cp -a of the folder.
	Workspace *Times `json:"workspace,omitempty"`
	Fork      *Times `json:"fork,omitempty"`
	PlainCopy *Times `json:"plain_cp,omitempty"`
	// Harvest of Options.Changed files; PlainDiff is diff -rN of the two folders.
	Harvest   *Times   `json:"harvest,omitempty"`
	PlainDiff *Times   `json:"plain_diff,omitempty"`
	Missing   []string `json:"missing,omitempty"`
}

// side is a backend and where its figures go.
type side struct {
	b  sandbox.Backend
	to *Launched
}

func newSide(b sandbox.Backend, to *Launched) side {
	if l, ok := b.(interface{ Launcher() string }); ok {
		to.Launcher = l.Launcher()
	}
	return side{b, to}
}

type run struct {
	ctx          context.Context
	b            sandbox.Backend
	sides        []side // b, and what is measured beside it
	o            Options
	r            *Report
	small, large string
}

// Run measures a backend. Its temporary folders are below TMPDIR.
func Run(ctx context.Context, b sandbox.Backend, o Options) (Report, error) {
	o = o.WithDefaults()
	r := Report{Backend: b.Name(), Cores: runtime.NumCPU(), Options: o, LoadBefore: load()}
	r.Busy = r.LoadBefore > float64(r.Cores)/4
	dir, err := os.MkdirTemp("", "ssr-bench-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	x := run{ctx: ctx, b: b, o: o, r: &r, small: filepath.Join(dir, "small"), large: filepath.Join(dir, "large")}
	x.sides = []side{newSide(b, &r.Launched)}
	if o.Beside != nil {
		r.Beside = &Launched{}
		x.sides = append(x.sides, newSide(o.Beside, r.Beside))
	}
	if err := errors.Join(fill(x.small, 1), fill(x.large, o.Files)); err != nil {
		return r, err
	}
	type part struct {
		name string
		f    func() error
	}
	unused := "plain docker"
	if o.Image != "" {
		unused = "plain bwrap"
	}
	for _, part := range slices.DeleteFunc([]part{
		{"cold", x.cold}, {"plain bwrap", x.plainCold}, {"rate", x.rate}, {"plain bwrap rate", x.plainRate}, {"live exec", x.exec},
		{"plain docker run", x.plainDockerRun}, {"plain docker exec", x.plainDockerExec},
		{"workspace", x.workspace}, {"fork", x.fork}, {"plain cp", x.plainCopy}, {"harvest", x.harvest}, {"plain diff", x.plainDiff},
		{"alive", x.each(x.alive)}, {"plain bwrap alive", x.plainAlive}, {"burst", x.each(x.burst)}, {"plain bwrap burst", x.plainBurst},
		{"hostile tree", x.each(x.death)}, {"plain bwrap tree", x.plainDeath},
	}, func(p part) bool { return strings.HasPrefix(p.name, unused) }) {
		err := part.f()
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		if err != nil {
			r.Missing = append(r.Missing, part.name+": "+err.Error())
		}
	}
	r.LoadAfter = load()
	return r, nil
}

func fileName(i int) string { return fmt.Sprintf("pkg%d/file%d.py", i/50, i) }

// fill makes a folder of n files of 2 KiB, 50 a folder.
func fill(dir string, n int) error {
	text := []byte(strings.Repeat("x = 1  # a line of code\n", 85))
	for i := range n {
		name := filepath.Join(dir, fileName(i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func load() float64 {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	v, _ := strconv.ParseFloat(first, 64)
	return v
}

// rounds times f; f may return the time that counts, 0 for all of it.
func (x *run) rounds(n int, f func(i int) (time.Duration, error)) (*Times, error) {
	var all []time.Duration
	for i := range n {
		if x.ctx.Err() != nil {
			return nil, x.ctx.Err()
		}
		begin := time.Now()
		counted, err := f(i)
		if err != nil {
			return nil, err
		}
		if counted == 0 {
			counted = time.Since(begin)
		}
		all = append(all, counted)
	}
	return summarise(all), nil
}

func summarise(all []time.Duration) *Times {
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return &Times{ms(all[len(all)/2]), ms(all[(len(all)*95-1)/100]), len(all)}
}

// each measures f of every side.
func (x *run) each(f func(side) error) func() error {
	return func() error {
		for _, s := range x.sides {
			if err := f(s); err != nil {
				return fmt.Errorf("%s: %w", s.to.Launcher, err)
			}
		}
		return nil
	}
}

// perSecond counts how often workers can do f in the span, a second.
func (x *run) perSecond(span time.Duration, f func(worker int) error) (float64, error) {
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var work sync.WaitGroup
	begin := time.Now()
	for w := range x.o.Workers {
		work.Go(func() {
			for time.Since(begin) < span && failed.Load() == nil && x.ctx.Err() == nil {
				if err := f(w); err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	work.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(done.Load()) / time.Since(begin).Seconds(), nil
}

func (x *run) start(b sandbox.Backend, dir string) (sandbox.Sandbox, error) {
	return b.Start(x.ctx, sandbox.Spec{Dir: dir, Frozen: true, Owner: "ssr-sandbox-bench"})
}

func (x *run) must(s sandbox.Sandbox, args ...string) error {
	res, err := s.Exec(x.ctx, sandbox.Cmd{Args: args})
	if err == nil && !res.OK() {
		err = fmt.Errorf("%q ended with status %d, signal %d: %s", args, res.Exit, res.Signal, res.Stderr)
	}
	return err
}

func (x *run) episode(b sandbox.Backend) error {
	s, err := x.start(b, x.small)
	if err != nil {
		return err
	}
	return errors.Join(x.must(s, "true"), s.Close())
}

func (x *run) cold() error {
	all := make([][]time.Duration, len(x.sides))
	for range x.o.Rounds {
		for i, s := range x.sides {
			begin := time.Now()
			if err := x.episode(s.b); err != nil {
				return fmt.Errorf("%s: %w", s.to.Launcher, err)
			}
			all[i] = append(all[i], time.Since(begin))
		}
	}
	for i, s := range x.sides {
		s.to.Cold = summarise(all[i])
	}
	return nil
}

// turns is how often a rate is taken of each of two sides in turn.
const turns = 5

func (x *run) rate() error {
	n := 1
	if len(x.sides) > 1 {
		n = turns
	}
	for range n {
		for _, s := range x.sides {
			r, err := x.perSecond(x.o.Span/time.Duration(n), func(int) error { return x.episode(s.b) })
			if err != nil {
				return fmt.Errorf("%s: %w", s.to.Launcher, err)
			}
			s.to.PerSecond += r / float64(n)
		}
	}
	return nil
}

func (x *run) exec() error {
	boxes, err := x.many(x.b, x.o.Workers, x.o.Workers)
	defer closeAll(boxes)
	if err != nil {
		return err
	}
	one := func(s sandbox.Sandbox) error { return x.must(s, "bash", "-c", "true") }
	x.r.Exec, err = x.rounds(x.o.Rounds, func(int) (time.Duration, error) { return 0, one(boxes[0]) })
	if err == nil {
		x.r.ExecPerSecond, err = x.perSecond(x.o.Span, func(w int) error { return one(boxes[w]) })
	}
	return err
}

func (x *run) workspace() (err error) {
	x.r.Workspace, err = x.rounds(max(1, x.o.Rounds/10), func(int) (time.Duration, error) {
		begin := time.Now()
		s, err := x.start(x.b, x.large)
		took := time.Since(begin)
		if err == nil {
			err = s.Close()
		}
		return took, err
	})
	return err
}

// changed starts a sandbox on the large folder and changes some of its files.
func (x *run) changed() (sandbox.Sandbox, error) {
	s, err := x.start(x.b, x.large)
	if err != nil {
		return nil, err
	}
	for i := range x.o.Changed {
		if err := s.WriteFile(x.ctx, fileName(i), []byte("changed\n"), 0o644); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (x *run) fork() error {
	s, err := x.changed()
	if err != nil {
		return err
	}
	defer s.Close()
	x.r.Fork, err = x.rounds(max(1, x.o.Rounds/10), func(int) (time.Duration, error) {
		begin := time.Now()
		fork, err := s.Fork(x.ctx)
		took := time.Since(begin)
		if err == nil {
			err = fork.Close()
		}
		return took, err
	})
	return err
}

func (x *run) harvest() error {
	s, err := x.changed()
	if err != nil {
		return err
	}
	defer s.Close()
	x.r.Harvest, err = x.rounds(max(1, x.o.Rounds/10), func(int) (time.Duration, error) {
		changes, err := s.Harvest(x.ctx)
		if err == nil && len(changes) != x.o.Changed {
			err = fmt.Errorf("%d changes, want %d", len(changes), x.o.Changed)
		}
		return 0, err
	})
	return err
}
