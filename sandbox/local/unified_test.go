//go:build linux

package local

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox"
)

// A folder with the files of a group stands in for one: what is written can be read.
func group2(t *testing.T, controllers, procs string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"cgroup.controllers": controllers, "cgroup.procs": procs, "cgroup.subtree_control": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestControllersThatAGroupHas(t *testing.T) {
	for _, x := range []struct {
		has    string
		memory bool
	}{{"cpuset cpu io memory pids\n", true}, {"cpu pids\n", false}} { // many arm64 boards boot without memory
		dir := group2(t, x.has, "")
		g := &cgroups{parent: map[string]string{}}
		g.findV2(filepath.Join(dir, trainersGroup), "name")
		want := filepath.Join(dir, "name")
		if !g.v2 || g.parent["pids"] != want || g.parent["cpuacct"] != want || (g.parent["memory"] == want) != x.memory {
			t.Errorf("%q: %+v", x.has, g)
		}
		if said := strings.Contains(strings.Join(g.notes, "\n"), "no controller memory"); said == x.memory {
			t.Errorf("%q: notes %q", x.has, g.notes)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); err != nil || string(text) != "+pids" {
			t.Errorf("%q: the last controller handed on is %q, %v", x.has, text, err)
		}
	}
}

func TestGroupThatIsNotOurs(t *testing.T) {
	g := &cgroups{parent: map[string]string{}}
	g.findV2(filepath.Join(t.TempDir(), "missing"), "name")
	if g.v2 || len(g.parent) > 0 || len(g.notes) != 1 || !strings.Contains(g.notes[0], "systemd-run --scope -p Delegate=yes") {
		t.Errorf("%+v", g)
	}
}

func TestDelegationIsAMark(t *testing.T) {
	dir := t.TempDir()
	for _, value := range []string{"0", "1"} {
		if err := unix.Setxattr(dir, "user.delegate", []byte(value), 0); err != nil {
			t.Skip("no attributes here:", err)
		}
		if got, want := delegated(dir), value == "1"; got != want {
			t.Errorf("%q: delegated %v", value, got)
		}
	}
}

func TestMoveAsideComesToAnEnd(t *testing.T) {
	if err := moveAside(group2(t, "", "")); err != nil {
		t.Error(err)
	}
	dir := group2(t, "", "17\n") // for ever
	if err := moveAside(dir); !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, trainersGroup, "cgroup.procs")); err != nil || string(text) != "17" {
		t.Errorf("%q, %v", text, err)
	}
}

// In a group that is its own the trainer has limits in the kernel's own files.
func TestLimitsInTheUnifiedHierarchy(t *testing.T) {
	b := newBackend(t)
	if !b.groups.v2 || b.groups.parent["memory"] == "" || b.groups.parent["pids"] == "" {
		t.Skip("no group of version 2 with both controllers is the trainer's own: ", b.groups.notes)
	}
	s, err := b.Start(t.Context(), sandbox.Spec{Dir: t.TempDir(), Limits: sandbox.Limits{Memory: 96 << 20, Processes: 40}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if r, err := s.Exec(t.Context(), sandbox.Cmd{Args: []string{"true"}}); err != nil || !r.OK() {
		t.Fatalf("%+v, %v", r, err)
	}
	x := s.(*box)
	dir := x.group.dirs["memory"]
	for file, want := range map[string]string{"memory.max": strconv.Itoa(96 << 20), "memory.swap.max": "0", "pids.max": strconv.Itoa(40 + overhead)} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if file == "memory.swap.max" && os.IsNotExist(err) {
			continue // a kernel without swap
		}
		if got := strings.TrimSpace(string(text)); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %s", file, got, err, want)
		}
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if pid := strconv.Itoa(x.cell.PID()); err != nil || !strings.Contains("\n"+string(procs), "\n"+pid+"\n") {
		t.Errorf("the first process %s is not among %q, %v", pid, procs, err)
	}
}
