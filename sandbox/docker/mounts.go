//go:build linux

package docker

import (
	"fmt"
	"slices"
	"strings"
)

// writable are the mounts of a container that may be. What is below /dev and /proc
// belongs to the container or to root; a rootless engine shows the machine's own devices,
// as it may make none.
var writable = []string{
	"/workspace", "/tmp", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue",
	"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty",
}

// mounted is a line of a mountinfo (proc_pid_mountinfo(5)).
type mounted struct {
	id, parent, of, at, options, fs string
}

// checkMounts looks at a container's mounts from outside: an engine need not know
// every word of a request, and does not say which it has passed over.
func checkMounts(mountinfo string) error {
	list := map[string]mounted{}
	for line := range strings.Lines(mountinfo) {
		head, tail, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(head), strings.Fields(tail)
		if !ok || len(f) < 6 || len(g) < 1 {
			return fmt.Errorf("mount %q is not understood", line)
		}
		list[f[0]] = mounted{f[0], f[1], f[3], f[4], f[5], g[0]}
	}
	for _, m := range list {
		switch {
		case covered(list, m), m.of == "/null": // which hides a file, as Docker does
		case m.fs == "sysfs":
			return fmt.Errorf("%s shows the machine's devices", m.at)
		case slices.Contains(strings.Split(m.options, ","), "rw") && !slices.Contains(writable, m.at):
			return fmt.Errorf("%s can be written", m.at)
		}
	}
	return nil
}

// covered reports whether another mount, which m is not part of, lies over its place.
func covered(list map[string]mounted, m mounted) bool {
	part := map[string]bool{}
	for up, ok := m, true; ok && !part[up.id]; up, ok = list[up.parent] {
		part[up.id] = true
	}
	for id, x := range list {
		if !part[id] && (m.at == x.at || strings.HasPrefix(m.at, strings.TrimSuffix(x.at, "/")+"/")) {
			return true
		}
	}
	return false
}
