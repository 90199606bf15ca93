//go:build linux

package local

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/ssr-go/ssr/sandbox"
)

// Probe starts a sandbox and reports what holds in it, and how. It fails when
// a protection that Options.Allow does not list is missing.
func (b *Backend) Probe(ctx context.Context) (sandbox.Capabilities, error) {
	caps := b.capabilities()
	if e := b.opts.Engine; e != nil {
		own, err := e.Capabilities(ctx)
		maps.Copy(caps.Enforced, own.Enforced)
		caps.Notes = append(caps.Notes, own.Notes...)
		if err != nil {
			return caps, err
		}
	}
	dir, err := os.MkdirTemp("", "ssr-probe-")
	if err != nil {
		return caps, infra("probe", err)
	}
	defer os.RemoveAll(dir)
	s, err := b.Start(ctx, sandbox.Spec{Dir: dir, Owner: "probe"})
	if err != nil {
		return caps, err
	}
	defer s.Close()
	r, err := s.Exec(ctx, sandbox.Cmd{Args: []string{"true"}})
	if err != nil {
		return caps, err
	}
	if !r.OK() {
		return caps, infra("probe", fmt.Errorf(`"true" ended with status %d, signal %d: %s`, r.Exit, r.Signal, r.Stderr))
	}
	return caps, nil
}

// capabilities says how each protection is enforced; every cell checks in
// verify that the kernel agrees.
func (b *Backend) capabilities() sandbox.Capabilities {
	version := "v1"
	if b.groups.v2 {
		version = "v2"
	}
	group := func(controller, otherwise string) string {
		if b.groups.parent[controller] != "" {
			return "cgroup " + version + " " + controller
		}
		return otherwise
	}
	c := sandbox.Capabilities{
		Notes: slices.Clone(b.groups.notes),
		Enforced: map[string]string{
			"filesystem":     "mount namespace, read-only system, private workspace and /tmp",
			"network":        "network namespace with its own loopback, and seccomp against other families",
			"user":           fmt.Sprintf("host uids from %d, one per sandbox, in a user namespace without capabilities", b.opts.FirstUID),
			"syscalls":       "seccomp filter",
			"processes":      group("pids", "RLIMIT_NPROC"),
			"memory":         group("memory", "RLIMIT_DATA of each process"),
			"cpu":            group("cpuacct", "RLIMIT_CPU of each process"),
			"disk":           fmt.Sprintf("measured every %v or more while a command runs, then killed", watchEvery),
			"unlinked files": "", // below
			"file size":      "RLIMIT_FSIZE",
			"open files":     "RLIMIT_NOFILE",
			"time":           "the pid namespace is killed at the deadline",
			"output":         "counted by the trainer",
			"process tree":   "pid namespace, killed and reaped after each command; parent-death signal",
		},
	}
	switch {
	case b.overlays != nil:
		c.Enforced["filesystem"] += ", an overlay over a read-only copy"
		c.Enforced["disk"] = "size of the sandbox's own file system in memory; a command that fills it is killed"
		c.Enforced["unlinked files"] = "they take room in that file system"
	case inMemory(b.opts.StateDir) && (b.groups.parent["memory"] != "" || b.opts.Engine != nil):
		c.Enforced["unlinked files"] = "workspaces are in memory, which the memory limit covers"
	default:
		c.Notes = append(c.Notes, "files that a command deletes and keeps open do not count as disk: only a state folder in memory (/dev/shm with 2 GiB free) with a memory control group bounds them together")
	}
	if b.refused != nil {
		c.Notes = append(c.Notes, fmt.Sprintf("bubblewrap makes the sandboxes: the native launcher, which is faster, does not work here: %v", b.refused))
	}
	if b.copied != nil {
		c.Notes = append(c.Notes, fmt.Sprintf("workspaces are copies and no overlays: %v", b.copied))
	}
	if !b.root {
		c.Enforced["user"] = "the trainer's own uid, in a user namespace without capabilities"
		c.Notes = append(c.Notes, "the trainer is not root: sandboxes share its uid on the host, so resources that the kernel counts by user are shared between them")
	}
	if b.groups.parent["memory"] == "" && b.opts.Engine == nil {
		c.Notes = append(c.Notes, "no writable memory control group: memory is limited for each process, not for the sandbox; run as root, or in a delegated group (systemd-run --user --scope -p Delegate=yes)")
	}
	for _, p := range b.opts.Allow {
		if _, ok := c.Enforced[p]; ok && p == "syscalls" {
			c.Enforced[p] = ""
			c.Notes = append(c.Notes, p+": given up by configuration")
		}
	}
	return c
}

// protections that verify checks, and that Options.Allow may give up.
var protections = map[string]func(pid int, status map[string]string, root bool) string{
	"user": func(_ int, status map[string]string, root bool) string {
		want := os.Geteuid()
		for f := range strings.FieldsSeq(status["Uid"]) {
			if uid, err := strconv.Atoi(f); err != nil || uid == 0 || !root && uid != want {
				return "uid on the host is " + f
			}
		}
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if strings.Trim(status[set], "0") != "" {
				return set + " is " + status[set]
			}
		}
		if status["NoNewPrivs"] != "1" {
			return "new privileges can be had"
		}
		return ""
	},
	"syscalls": func(_ int, status map[string]string, _ bool) string {
		if status["Seccomp"] != "2" {
			return "no seccomp filter"
		}
		return ""
	},
	"filesystem": func(pid int, _ map[string]string, _ bool) string {
		return sameNamespace(pid, "mnt", "pid", "ipc", "uts")
	},
	"network": func(pid int, _ map[string]string, _ bool) string { return sameNamespace(pid, "net") },
}

func sameNamespace(pid int, names ...string) string {
	for _, n := range names {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, n))
		if err != nil {
			return err.Error()
		}
		ours, err := os.Readlink("/proc/self/ns/" + n)
		if err != nil {
			return err.Error()
		}
		if ours == theirs {
			return "the host's " + n + " namespace"
		}
	}
	return ""
}

// verify asks the kernel what the first process of a cell is confined by; a user
// namespace of its own is wanted where userns is set.
func (b *Backend) verify(pid int, userns bool) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	status := map[string]string{}
	for line := range bytes.Lines(text) {
		if k, v, ok := strings.Cut(string(line), ":"); ok {
			status[k] = strings.TrimSpace(v)
		}
	}
	if why := sameNamespace(pid, "user"); userns && why != "" && !slices.Contains(b.opts.Allow, "user") {
		return fmt.Errorf("a sandbox without protection %q: %s", "user", why)
	}
	for _, name := range slices.Sorted(maps.Keys(protections)) {
		if why := protections[name](pid, status, b.root); why != "" && !slices.Contains(b.opts.Allow, name) {
			return fmt.Errorf("a sandbox without protection %q: %s", name, why)
		}
	}
	return nil
}
