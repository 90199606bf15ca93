package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ssr-go/ssr/kernels/native"
	"github.com/ssr-go/ssr/sandbox"
)

// machine measures the best of five rounds in which every worker multiplies
// matrices that stay in its cache, and then a row with 256 MiB of weights of its own.
func (b *benchRun) machine(ctx context.Context) error {
	const rows, k, n, repeat, wide = 96, 384, 512, 200, 1 << 26 / 384
	type lane struct{ x, w, y, large, out []float32 }
	lanes := make([]lane, b.result.Workers)
	for i := range lanes {
		lanes[i] = lane{
			make([]float32, rows*k), make([]float32, native.PackedLen(k, n)), make([]float32, rows*n),
			slices.Repeat([]float32{1}, native.PackedLen(k, wide)), make([]float32, wide), // pages that were never written have no memory
		}
	}
	rate := func(work float64, f func(lane)) (float64, error) {
		best := 0.
		for range 5 {
			began := time.Now()
			err := b.policy.Workers().Each(ctx, func(worker int) error { f(lanes[worker]); return nil })
			if err != nil {
				return 0, err
			}
			best = max(best, work*float64(b.result.Workers)/time.Since(began).Seconds())
		}
		return best, nil
	}
	var err, err2 error
	b.result.GFLOPs, err = rate(2e-9*rows*k*n*repeat, func(l lane) {
		for range repeat {
			native.Linear(l.x, l.w, nil, rows, k, n, 0, 0, l.y, false)
		}
	})
	b.result.GBs, err2 = rate(4e-9*k*wide, func(l lane) { native.Linear(l.x, l.large, nil, 1, k, wide, 0, 0, l.out, false) })
	return errors.Join(err, err2)
}

// sandboxCommands is how many commands an episode of the benchmark runs.
const sandboxCommands = 4

// sandbox starts sandboxes on a folder of 100 files, runs commands and harvests,
// with as many side by side as there are workers.
func (b *benchRun) sandbox(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "ssr-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for i := range 100 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%02d.txt", i)), bytes.Repeat([]byte("line\n"), 200), 0o644); err != nil {
			return err
		}
	}
	backend, err := b.config().open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()
	var mu sync.Mutex
	episodes := 0
	var inside time.Duration
	began := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	for range b.result.Workers {
		g.Go(func() error {
			for time.Since(began) < b.Budget {
				spent, err := sandboxEpisode(gctx, backend, dir)
				if err != nil {
					return err
				}
				mu.Lock()
				episodes++
				inside += spent
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	b.result.SandboxEpisodes = float64(episodes) / time.Since(began).Seconds()
	b.result.SandboxCommandMS = inside.Seconds() * 1000 / float64(episodes*sandboxCommands)
	return nil
}

func sandboxEpisode(ctx context.Context, backend sandbox.Backend, dir string) (spent time.Duration, err error) {
	box, err := backend.Start(ctx, sandbox.Spec{Dir: dir, Owner: "ssr-bench"})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	for i := range sandboxCommands {
		began := time.Now()
		res, err := box.Exec(ctx, sandbox.Cmd{Args: []string{"bash", "-c", fmt.Sprintf("grep -c line f%02d.txt && echo changed >> f%02d.txt", i, i)}})
		if err != nil {
			return 0, err
		}
		if !res.OK() {
			return 0, fmt.Errorf("a command ended with status %d: %s", res.Exit, res.Stderr)
		}
		spent += time.Since(began)
	}
	changes, err := box.Harvest(ctx)
	if err == nil && len(changes) != sandboxCommands {
		err = fmt.Errorf("%d files changed, want %d", len(changes), sandboxCommands)
	}
	return spent, err
}

// cpuTime is the processor's time that this process has taken.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // it cannot fail for RUSAGE_SELF
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// processStart is when the kernel started this process, to a hundredth of a second.
func processStart() (time.Time, error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return time.Time{}, err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return time.Time{}, err
	}
	// The fields after the program's name, which may hold anything; starttime is the 22nd.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return time.Time{}, errors.New("/proc/self/stat is too short")
	}
	ticks, err1 := strconv.ParseFloat(string(fields[19]), 64)
	up, err2 := strconv.ParseFloat(string(bytes.Fields(uptime)[0]), 64)
	const ticksPerSecond = 100 // USER_HZ, fixed on Linux
	age := up - ticks/ticksPerSecond
	return time.Now().Add(-time.Duration(age * float64(time.Second))), errors.Join(err1, err2)
}
