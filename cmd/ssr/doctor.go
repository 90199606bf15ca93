package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox/docker"
	"github.com/ssr-go/ssr/sandbox/local"
)

type doctorCmd struct {
	jsonFlag
}

// finding is one line of the doctor's report.
type finding struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Found is what is there; Advice what to do where something is missing.
	Found  string `json:"found"`
	Advice string `json:"advice,omitempty"`
	// Needed says that training does not work without it.
	Needed bool `json:"needed"`
	// Enforced is what a sandbox backend enforces, and how.
	Enforced map[string]string `json:"enforced,omitempty"`
}

// doctorTimeout bounds each probe.
const doctorTimeout = 20 * time.Second

func (c *doctorCmd) Run(ctx context.Context, o output) error {
	var all []finding
	for _, probe := range []func(context.Context) finding{
		probeLibtorch, probeCUDA, probeLocal, probeDocker, probeProgram("git", true, "apt-get install git"),
		probeProgram("python3", false, "apt-get install python3; the parsers of bugs are Python, in the sandbox"),
		probeCores, probeMemory,
	} {
		ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
		all = append(all, probe(ctx))
		cancel()
	}
	return reportFindings(o, all, c.JSON)
}

// reportFindings prints them, and fails when something that is needed is missing.
func reportFindings(o output, all []finding, asJSON bool) error {
	healthy := true
	for _, f := range all {
		healthy = healthy && (f.OK || !f.Needed)
	}
	if asJSON {
		if err := printJSON(o.out, map[string]any{"ok": healthy, "findings": all}); err != nil {
			return err
		}
	} else {
		for _, f := range all {
			mark := "ok  "
			if !f.OK {
				mark = "none"
				if f.Needed {
					mark = "MISS"
				}
			}
			fmt.Fprintf(o.out, "%s  %-14s %s\n", mark, f.Name, f.Found)
			for _, k := range slices.Sorted(maps.Keys(f.Enforced)) {
				how := f.Enforced[k]
				if how == "" {
					how = "not enforced"
				}
				fmt.Fprintf(o.out, "      %14s %s: %s\n", "", k, how)
			}
			if f.Advice != "" {
				fmt.Fprintf(o.out, "      %14s → %s\n", "", f.Advice)
			}
		}
	}
	if !healthy {
		return fmt.Errorf("training cannot work on this machine yet; see the lines marked MISS")
	}
	return nil
}

func probeLocal(ctx context.Context) finding {
	f := finding{Name: "sandbox local", Needed: true}
	b, err := local.New(local.Options{})
	if err != nil {
		f.Found, f.Advice = err.Error(), "apt-get install bubblewrap"
		return f
	}
	defer b.Close()
	caps, err := b.Probe(ctx)
	if err != nil {
		f.Found, f.Advice = err.Error(), "check that unprivileged user namespaces are on: sysctl kernel.unprivileged_userns_clone user.max_user_namespaces"
		return f
	}
	f.OK, f.Enforced = true, caps.Enforced
	f.Found = "native launcher, which was tried and works"
	if b.Launcher() == local.LauncherBwrap { // the notes say why
		f.Found = "bubblewrap"
		if out, err := exec.CommandContext(ctx, "bwrap", "--version").Output(); err == nil {
			f.Found = strings.TrimSpace(string(out))
		}
	}
	f.Advice = strings.Join(caps.Notes, "; ")
	return f
}

func probeDocker(ctx context.Context) finding {
	f := finding{Name: "sandbox docker"}
	caps, err := docker.Look(ctx, "")
	if err != nil {
		f.Found, f.Advice = err.Error(), "optional: the local sandbox needs no container engine"
		return f
	}
	f.OK, f.Found, f.Enforced = true, strings.Join(caps.Notes, "; "), caps.Enforced
	return f
}

func probeProgram(name string, needed bool, advice string) func(context.Context) finding {
	return func(ctx context.Context) finding {
		f := finding{Name: name, Needed: needed, Found: "not found in PATH", Advice: advice}
		if _, err := exec.LookPath(name); err != nil {
			return f
		}
		out, err := exec.CommandContext(ctx, name, "--version").Output()
		if err != nil {
			f.Found = fmt.Sprintf("%s --version: %v", name, err)
			return f
		}
		return finding{Name: name, OK: true, Found: strings.TrimSpace(string(out))}
	}
}

func probeCores(context.Context) finding {
	return finding{Name: "cores", OK: true, Found: fmt.Sprintf("%d, %s/%s", runtime.GOMAXPROCS(0), runtime.GOOS, runtime.GOARCH)}
}

// lowMemory is what a small run with its sandboxes needs at the least.
const lowMemory = 4 << 30

func probeMemory(context.Context) finding {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return finding{Name: "memory", Found: err.Error()}
	}
	total := uint64(info.Totalram) * uint64(info.Unit)
	f := finding{Name: "memory", OK: total >= lowMemory, Found: fmt.Sprintf("%.1f GiB", float64(total)/(1<<30))}
	if !f.OK {
		f.Advice = "less than 4 GiB: lower episodes.in_flight and train.token_budget"
	}
	return f
}

// printJSON prints v indented, with a final line end.
func printJSON(w *os.File, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
