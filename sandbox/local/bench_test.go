//go:build linux

package local

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// repository makes a folder of 60 files of 4 KiB in 6 folders.
func repository(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	text := []byte(strings.Repeat("x = 1  # a line of code\n", 170))
	for i := range 60 {
		name := filepath.Join(dir, fmt.Sprintf("pkg%d/file%d.py", i%6, i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// phases collects durations and reports their medians.
type phases map[string][]time.Duration

func (p phases) add(name string, since time.Time) time.Time {
	now := time.Now()
	p[name] = append(p[name], now.Sub(since))
	return now
}

func (p phases) report(b *testing.B) {
	for name, d := range p {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, name+"-ms")
	}
}

// An episode without its commands: create, one "true", harvest, close.
func BenchmarkEpisode(b *testing.B) {
	b.Run("overlay", func(b *testing.B) { benchmarkEpisode(b, Options{}) })
	b.Run("copy", func(b *testing.B) { benchmarkEpisode(b, Options{Copy: true}) })
	b.Run("bwrap", func(b *testing.B) { benchmarkEpisode(b, Options{Launcher: LauncherBwrap}) })
}

func benchmarkEpisode(b *testing.B, opts Options) {
	dir, backend := repository(b), newBackendWith(b, opts)
	p := phases{}
	for b.Loop() {
		begin := time.Now()
		x, err := backend.Start(b.Context(), sandbox.Spec{Dir: dir, Frozen: true})
		if err != nil {
			b.Fatal(err)
		}
		t := p.add("start", begin)
		if r, err := x.Exec(b.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() {
			b.Fatal(r, err)
		}
		t = p.add("first-exec", t)
		if c, err := x.Harvest(b.Context()); err != nil || len(c) > 0 {
			b.Fatal(c, err)
		}
		t = p.add("harvest", t)
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
		p.add("close", t)
		p.add("episode", begin)
	}
	p.report(b)
}

// A command in a live sandbox.
func BenchmarkExec(b *testing.B) {
	x, err := newBackend(b).Start(b.Context(), sandbox.Spec{Dir: repository(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	sh := sandbox.NewShell(x)
	run := func(name string, exec func() (sandbox.Result, error)) {
		b.Run(name, func(b *testing.B) {
			p := phases{}
			for b.Loop() {
				t := time.Now()
				if r, err := exec(); err != nil || !r.OK() {
					b.Fatal(r, err)
				}
				p.add("exec", t)
			}
			p.report(b)
		})
	}
	run("true", func() (sandbox.Result, error) { return x.Exec(b.Context(), sandbox.Cmd{Args: []string{"true"}}) })
	run("shell", func() (sandbox.Result, error) { return sh.Run(b.Context(), "true") })
}
