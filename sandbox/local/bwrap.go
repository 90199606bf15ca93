//go:build linux

package local

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/pid1"
)

// findBwrap finds bubblewrap, by default in PATH.
func findBwrap(name string) (string, error) {
	if name == "" {
		name = "bwrap"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", infra("bubblewrap not found: install it (Debian: apt-get install bubblewrap)", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", infra("bubblewrap", err)
	}
	if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeSetuid != 0 {
		return "", infra("bubblewrap", fmt.Errorf("%s is setuid root: its sandboxes would be made with root's rights; remove the bit (chmod u-s) and allow unprivileged user namespaces", path))
	}
	return path, nil
}

// bwrapKnows reports whether this bubblewrap has an option.
func bwrapKnows(bwrap, option string) bool {
	cmd := exec.Command(bwrap, "--help")
	cmd.Env = []string{}
	help, _ := cmd.CombinedOutput()
	return strings.Contains(string(help), option)
}

// shmSize is the room in the sandbox's own /dev/shm.
const shmSize = 64 << 20

// bwrapArgs is bubblewrap's command line for the first process.
func (b *Backend) bwrapArgs(s slot) []string {
	a := []string{
		b.opts.Bwrap,
		"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
		"--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL",
		"--uid", "1000", "--gid", "1000", "--hostname", "sandbox",
		"--ro-bind", b.rootfs, "/",
		"--proc", "/proc",
		"--dev", "/dev", "--size", strconv.Itoa(shmSize), "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev",
	}
	if b.disableUserns {
		a = append(a, "--disable-userns")
	}
	for _, x := range b.readOnly() {
		a = append(a, "--ro-bind", x.Host, "/"+x.Inside)
	}
	a = append(a, "--bind", s.workspace(), sandbox.Workdir, "--bind", s.tmp(), "/tmp")
	if b.filtered() {
		a = append(a, "--seccomp", "4")
	}
	return append(a, "--as-pid-1", "--", pid1.ProgramPath)
}
