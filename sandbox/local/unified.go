//go:build linux

package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// trainersGroup is the child that the processes of a divided group move to.
const trainersGroup = "ssr-trainers"

// findV2 uses the unified hierarchy. There only a group without processes hands
// controllers on to its children ("no internal process constraint",
// Documentation/admin-guide/cgroup-v2.rst), so the trainer moves aside where its group
// is its own to divide.
func (g *cgroups) findV2(self, name string) {
	if filepath.Base(self) == trainersGroup { // it has moved already
		self = filepath.Dir(self)
	}
	has, err := os.ReadFile(filepath.Join(self, "cgroup.controllers"))
	wanted := []string{"memory", "pids"}
	for _, c := range wanted {
		if err == nil && !slices.Contains(strings.Fields(string(has)), c) {
			g.notes = append(g.notes, fmt.Sprintf("cgroup v2: the trainer's group %s has no controller %s", self, c))
		}
	}
	wanted = slices.DeleteFunc(wanted, func(c string) bool { return !slices.Contains(strings.Fields(string(has)), c) })
	dir := filepath.Join(self, name)
	if err == nil {
		err = makeFolder(dir)
	}
	if err == nil {
		err = handOn(self, wanted)
		if errors.Is(err, unix.EBUSY) && delegated(self) {
			if err = moveAside(self); err == nil {
				err = handOn(self, wanted)
			}
		}
	}
	if err == nil {
		err = handOn(dir, wanted)
	}
	if err != nil {
		os.Remove(dir)
		g.notes = append(g.notes, fmt.Sprintf("cgroup v2: %v; start the trainer by systemd-run --scope -p Delegate=yes (with --user as an ordinary user) for limits on memory and processes of the whole sandbox", err))
		return
	}
	g.v2 = true
	for _, c := range append(wanted, "cpuacct") { // processor time is counted in every group
		g.parent[c] = dir
	}
}

// handOn lets a group's children have controllers.
func handOn(dir string, controllers []string) error {
	for _, c := range controllers {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return err
		}
	}
	return nil
}

// delegated reports whether whoever manages the groups has left one to what runs in
// it. systemd marks such groups (systemd.resource-control(5), Delegate=) and else takes
// back what it has not made; but a user's own manager (257) marks none, so there a group
// counts that is the user's and holds nothing but the trainer. Without systemd the group
// that is seen as the root is a container's own.
func delegated(dir string) bool {
	mark := make([]byte, 1)
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(dir, name, mark); err == nil && n == 1 && mark[0] == '1' {
			return true
		}
	}
	if uid := os.Geteuid(); uid != 0 {
		var st unix.Stat_t
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		return err == nil && unix.Stat(dir, &st) == nil && int(st.Uid) == uid &&
			strings.TrimSpace(string(procs)) == strconv.Itoa(os.Getpid())
	}
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	return os.IsNotExist(err) && cgroupMounts()[""].point == dir
}

// moveAside moves all processes of a group to a child, for good: they are the trainer,
// what has started it, and what these start meanwhile.
func moveAside(dir string) error {
	child := filepath.Join(dir, trainersGroup)
	if err := makeFolder(child); err != nil {
		return err
	}
	for range 100 {
		left, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return err
		}
		pids := strings.Fields(string(left))
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			err := os.WriteFile(filepath.Join(child, "cgroup.procs"), []byte(pid), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
				return fmt.Errorf("move process %s: %w", pid, err)
			}
		}
	}
	return fmt.Errorf("%s always has new processes: %w", dir, unix.EBUSY)
}
