//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/ssr-go/ssr/sandbox/pid1"
)

// The launchers. Each makes a sandbox's namespaces, gives up what rights that took
// and becomes the first process; what is shown, and what is forbidden, is the same.
const (
	// LauncherNative is our own, a part of the first process's program (sandbox/pid1).
	// It needs Linux 5.12 and user namespaces for unprivileged users.
	LauncherNative = "native"
	// LauncherBwrap is bubblewrap, 0.8 or later, as the distribution has it.
	LauncherBwrap = "bwrap"
)

// Launcher tells which launcher makes the sandboxes, "" where an engine does.
func (b *Backend) Launcher() string { return b.launcher }

// launching is what errors say was being done.
func (b *Backend) launching() string {
	if b.launcher == "" { // cells are an engine's
		return "start a sandbox"
	}
	return "start a sandbox with launcher " + b.launcher
}

// withBwrap finds bubblewrap. It may be missing unless the options name it.
func (o Options) withBwrap() (Options, error) {
	if !slices.Contains([]string{"", LauncherNative, LauncherBwrap}, o.Launcher) {
		return o, fmt.Errorf("no launcher %q; there are %q and %q", o.Launcher, LauncherNative, LauncherBwrap)
	}
	path, err := findBwrap(o.Bwrap)
	if err != nil && (o.Bwrap != "" || o.Launcher == LauncherBwrap) {
		return o, err
	}
	o.Bwrap = path
	return o, nil
}

// chooseLauncher tries the native launcher, unless bubblewrap is asked for.
func (b *Backend) chooseLauncher() error {
	if b.opts.Launcher != LauncherBwrap {
		b.launcher = LauncherNative
		err := b.try()
		if err == nil {
			return nil
		}
		if b.opts.Launcher == LauncherNative {
			return err
		}
		b.refused = err
		if b.opts.Bwrap == "" {
			_, missing := findBwrap("")
			return errors.Join(err, missing)
		}
	}
	b.launcher = LauncherBwrap
	b.disableUserns = bwrapKnows(b.opts.Bwrap, "--disable-userns")
	return nil
}

// try makes a cell on an empty workspace and looks whether the kernel confines it.
func (b *Backend) try() error {
	dir, err := os.MkdirTemp(b.opts.StateDir, fmt.Sprintf("new-%d-", os.Getpid()))
	if err != nil {
		return infra("try the launcher", err)
	}
	defer os.RemoveAll(dir)
	x := &box{backend: b, slot: slot{dir: dir, number: b.opts.FirstUID}}
	uid, gid := x.uid()
	err = os.Chmod(dir, 0o711)
	for _, d := range []string{x.slot.workspace(), x.slot.tmp()} {
		err = errors.Join(err, os.Mkdir(d, 0o700), os.Chown(d, uid, gid))
	}
	if err != nil {
		return infra("try the launcher", err)
	}
	c, err := b.newCell(context.Background(), x)
	if err != nil {
		return err
	}
	defer c.Kill()
	if err := b.verify(c.PID(), true); err != nil {
		return infra("try the launcher", err)
	}
	return nil
}

// credential is whom a launcher runs as; nil is the trainer itself, which is not root.
func (x *box) credential() *syscall.Credential {
	if !x.backend.root {
		return nil
	}
	uid, gid := x.uid()
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{}}
}

// filtered says whether sandboxes get a seccomp filter, as descriptor 4 of the launcher.
func (b *Backend) filtered() bool { return !slices.Contains(b.opts.Allow, "syscalls") }

// command is the launcher's command line for a sandbox.
func (b *Backend) command(s slot) []string {
	if b.launcher == LauncherBwrap {
		return b.bwrapArgs(s)
	}
	return pid1.LaunchCommand(b.rootfs, s.workspace(), s.tmp(), b.filtered(), b.readOnly())
}

// readOnly lists what of the host is shown.
func (b *Backend) readOnly() []pid1.Shown {
	var all []pid1.Shown
	for _, name := range b.shown {
		host := filepath.Join(b.opts.Root, name)
		if info, err := os.Lstat(host); err == nil && info.IsDir() {
			all = append(all, pid1.Shown{Host: host, Inside: name})
		}
	}
	for _, path := range b.opts.ReadOnly {
		all = append(all, pid1.Shown{Host: path, Inside: strings.TrimPrefix(path, "/")})
	}
	return all
}

// explain adds what to do to a launcher's own words.
func explain(said string) error {
	// The native one gives errors by number.
	if i := strings.LastIndex(said, ": error "); i >= 0 {
		if n, err := strconv.Atoi(said[i+len(": error "):]); err == nil {
			said = said[:i] + ": " + syscall.Errno(n).Error()
		}
	}
	advice := ""
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(strings.ToLower(said), w) })
	}
	switch {
	case has("uid map", "uid_map", "setgroups", "new namespace", "user namespace", "rtm_newaddr"):
		advice = "; user namespaces are refused to unprivileged users here: set sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, and kernel.apparmor_restrict_unprivileged_userns=0 (or an AppArmor profile for bwrap); in a container, allow them in its seccomp profile"
	case has("unknown option"):
		advice = "; bubblewrap is too old: install 0.8 or later"
	case has("permission denied"):
		advice = "; the state folder and its parents must be passable for the sandboxes' uids: choose another with the state folder option"
	case has("seccomp"):
		advice = `; this kernel has no seccomp filters: allow the protection "syscalls" to be missing, or use another kernel`
	}
	return errors.New(said + advice)
}
