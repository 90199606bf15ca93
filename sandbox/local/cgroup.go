//go:build linux

package local

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups finds and makes control groups, of version 1 or 2, below the
// trainer's own, so that limits set on the trainer hold for its sandboxes too.
type cgroups struct {
	parent map[string]string // controller → our folder in its hierarchy
	home   map[string]string // controller → the trainer's own group, in version 1
	v2     bool
	notes  []string
}

// controllers in use: a missing one is replaced or reported by Probe.
var controllers = []string{"memory", "pids", "cpuacct"}

// findCgroups looks for writable hierarchies and makes a folder in each that
// is named after the state folder.
func findCgroups(state string) *cgroups {
	g := &cgroups{parent: map[string]string{}, home: map[string]string{}}
	h := fnv.New32a()
	h.Write([]byte(state))
	name := fmt.Sprintf("ssr-sandbox-%08x", h.Sum32())
	own, mounts := groupsOf("self"), cgroupMounts()
	for _, c := range controllers {
		m, ok := mounts[c]
		if !ok {
			continue
		}
		dir := m.folder(own[c], name)
		if err := makeFolder(dir); err != nil {
			g.notes = append(g.notes, fmt.Sprintf("cgroup controller %s is not writable: %v", c, err))
			continue
		}
		g.parent[c], g.home[c] = dir, filepath.Dir(dir)
	}
	if m, ok := mounts[""]; ok && len(g.parent) == 0 {
		g.findV2(m.folder(own[""], ""), name)
	}
	return g
}

func makeFolder(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// group is the control group of one sandbox: a folder for each controller.
type group struct {
	dirs  map[string]string
	home  map[string]string
	v2    bool
	found bool // somebody else made it and removes it
}

// groupOf finds the control group that an engine has put a process into, its first.
// A controller whose folder is not there is left out, and one whose folder holds other
// processes too: an engine that may not make groups leaves all in its own.
func groupOf(pid int) *group {
	own, mounts := groupsOf(fmt.Sprint(pid)), cgroupMounts()
	x := &group{dirs: map[string]string{}, found: true}
	for _, c := range controllers {
		if m, ok := mounts[c]; ok {
			x.add(c, m.folder(own[c], ""), pid)
		}
	}
	if m, ok := mounts[""]; ok && len(x.dirs) == 0 {
		x.v2 = true
		for _, c := range controllers {
			x.add(c, m.folder(own[""], ""), pid)
		}
	}
	return x
}

func (x *group) add(controller, dir string, pid int) {
	in, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err == nil && strings.TrimSpace(string(in)) == strconv.Itoa(pid) {
		x.dirs[controller] = dir
	}
}

// create makes the group of a slot and sets its limits. One left by a dead
// trainer is taken over.
func (g *cgroups) create(number int, memory int64, processes int) (*group, error) {
	x := g.at(number)
	for _, dir := range x.dirs {
		err := makeFolder(dir)
		if errors.Is(err, fs.ErrNotExist) { // another trainer has just closed
			_ = makeFolder(filepath.Dir(dir))
			err = makeFolder(dir)
		}
		if err != nil {
			return nil, err
		}
	}
	type setting struct {
		controller, file string
		value            int64
		optional         bool
	}
	settings := []setting{
		{"memory", "memory.limit_in_bytes", memory, false},
		{"memory", "memory.memsw.limit_in_bytes", memory, true}, // where swap is accounted
		{"pids", "pids.max", int64(processes), false},
	}
	if g.v2 {
		settings = []setting{
			{"memory", "memory.max", memory, false},
			{"memory", "memory.swap.max", 0, true},
			{"pids", "pids.max", int64(processes), false},
		}
	}
	for _, s := range settings {
		dir, ok := x.dirs[s.controller]
		if !ok {
			continue
		}
		err := os.WriteFile(filepath.Join(dir, s.file), strconv.AppendInt(nil, s.value, 10), 0)
		if err != nil && !s.optional {
			x.remove()
			return nil, err
		}
	}
	return x, nil
}

// close removes our folders, unless another trainer uses them.
func (g *cgroups) close() {
	for _, dir := range g.parent {
		_ = os.Remove(dir)
	}
}

// at names the group of a slot.
func (g *cgroups) at(number int) *group {
	x := &group{dirs: map[string]string{}, home: g.home, v2: g.v2}
	for c, dir := range g.parent {
		x.dirs[c] = filepath.Join(dir, strconv.Itoa(number))
	}
	return x
}

// enter moves the calling thread, which must be locked, into the group, so
// that the process it starts next is born there, and returns the way back. A
// thread that moves itself is spared the global lock which makes moving
// another process take tens of milliseconds.
func (x *group) enter() (leave func(), err error) {
	if x == nil || x.v2 {
		return func() {}, nil // version 2: clone takes the group, see folder
	}
	leave = func() {
		for c := range x.dirs {
			_ = moveSelf(x.home[c])
		}
	}
	for _, dir := range x.dirs {
		if err := moveSelf(dir); err != nil {
			leave()
			return nil, err
		}
	}
	return leave, nil
}

func moveSelf(dir string) error {
	return os.WriteFile(filepath.Join(dir, "tasks"), []byte("0"), 0)
}

// folder opens the group for clone, in version 2; nil otherwise.
func (x *group) folder() (*os.File, error) {
	if x == nil || !x.v2 {
		return nil, nil
	}
	return os.Open(x.dirs["cpuacct"]) // which version 2 always has
}

// remove deletes the group. The kernel lets go of the last process a moment
// after it is reaped.
func (x *group) remove() {
	if x.found {
		return
	}
	for _, dir := range x.dirs {
		for range 50 {
			if err := os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
}

// cpu is the processor time used so far, if known.
func (x *group) cpu() (time.Duration, bool) {
	dir, ok := x.dirs["cpuacct"]
	switch {
	case !ok:
		return 0, false
	case x.v2:
		n, ok := keyed(filepath.Join(dir, "cpu.stat"), "usage_usec")
		return time.Duration(n) * time.Microsecond, ok
	}
	b, err := readCounter(filepath.Join(dir, "cpuacct.usage"))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	return time.Duration(n), err == nil
}

// kills counts the processes that the memory limit has killed.
func (x *group) kills() int64 {
	if x == nil || x.dirs["memory"] == "" {
		return 0
	}
	dir, file := x.dirs["memory"], "memory.oom_control"
	if x.v2 {
		file = "memory.events"
	}
	n, _ := keyed(filepath.Join(dir, file), "oom_kill")
	return n
}

// readCounter reads a small file of a control group. It is read several times a
// command, and os.ReadFile makes three times the system calls.
func readCounter(file string) ([]byte, error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 1<<12)
	n, err := unix.Read(fd, b)
	return b[:max(n, 0)], err
}

// keyed reads the number after a key in a file of "key number" lines.
func keyed(file, key string) (int64, bool) {
	b, err := readCounter(file)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, err := strconv.ParseInt(v, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// groupsOf maps each controller ("" for version 2) to a process's path.
func groupsOf(pid string) map[string]string {
	own := map[string]string{}
	b, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		return own
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for c := range strings.SplitSeq(f[1], ",") {
				own[c] = f[2]
			}
		}
	}
	return own
}

// mount is where a part of a hierarchy can be reached.
type mount struct{ root, point string }

// folder is where a group appears under the mount.
func (m mount) folder(path, name string) string {
	if rest, ok := strings.CutPrefix(path, m.root); ok {
		path = rest
	}
	return filepath.Join(m.point, path, name)
}

// cgroupMounts maps each controller ("" for version 2) to its first mount.
func cgroupMounts() map[string]mount {
	mounts := map[string]mount{}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mounts
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		head, tail, ok := strings.Cut(lines.Text(), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(t) < 3 {
			continue
		}
		m := mount{root: h[3], point: h[4]}
		switch t[0] {
		case "cgroup":
			for c := range strings.SplitSeq(t[2], ",") {
				if _, known := mounts[c]; !known {
					mounts[c] = m
				}
			}
		case "cgroup2":
			if _, known := mounts[""]; !known {
				mounts[""] = m
			}
		}
	}
	return mounts
}
