//go:build linux

// Package local runs sandboxes on this machine with bubblewrap, started as an
// unprivileged user: one of its own per live sandbox when the trainer is root.
package local

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
)

// Options configure the backend. The zero value works.
type Options struct {
	// StateDir holds the workspaces of live sandboxes; by default a folder of
	// the temporary folder named after the user. Trainers may share it.
	StateDir string
	// FirstUID and UIDs are the range of host uids that sandboxes run as when
	// the trainer is root, one each. No user or container of the host may use
	// them. By default 1,879,048,192 and 65,536.
	FirstUID, UIDs int
	// Bwrap is the bubblewrap program, by default the one in PATH.
	Bwrap string
	// Root is the folder that holds the system the sandbox sees, by default "/".
	Root string
	// ReadOnly lists further folders and files of the host to show, read-only, at the same place.
	ReadOnly []string
	// Allow lists protections (the keys of Capabilities.Enforced) that may be
	// missing. Otherwise a missing one makes Start fail.
	Allow []string
	// Bounds of a harvest; zero fields mean harvest.DefaultBounds.
	Bounds harvest.Bounds
}

const (
	defaultFirstUID = 0x7000_0000
	defaultUIDs     = 65536
	slots           = 65536 // numbers without uids, when the trainer is not root
)

// Backend is a sandbox.Backend. It may be used from any goroutine.
type Backend struct {
	opts  Options
	self  owner
	root  bool // sandboxes get a uid each
	spawn *spawner

	etc      string // a folder with a minimal /etc
	init     string // the program of pid1
	seccomp  []byte
	groups   *cgroups
	starting chan struct{} // bounds how many bubblewraps set up at once

	mu     sync.Mutex
	live   map[*box]struct{}
	closed bool
}

var _ sandbox.Backend = (*Backend)(nil)

// New prepares the state folder. It starts nothing; Probe says whether sandboxes can run.
func New(opts Options) (*Backend, error) {
	if opts.StateDir == "" {
		opts.StateDir = filepath.Join(os.TempDir(), fmt.Sprintf("ssr-sandbox-%d", os.Geteuid()))
	}
	state, err := filepath.Abs(opts.StateDir)
	if err != nil {
		return nil, infra("state folder", err)
	}
	opts.StateDir = state
	if opts.FirstUID == 0 {
		opts.FirstUID = defaultFirstUID
	}
	if opts.UIDs == 0 {
		opts.UIDs = defaultUIDs
	}
	if opts.FirstUID < 1 || opts.UIDs < 1 {
		return nil, fmt.Errorf("uid range %d+%d: a sandbox must not run as root", opts.FirstUID, opts.UIDs)
	}
	if opts.Root == "" {
		opts.Root = "/"
	}
	if opts.Bwrap == "" {
		opts.Bwrap = "bwrap"
	}
	bwrap, err := exec.LookPath(opts.Bwrap)
	if err != nil {
		return nil, infra("bubblewrap not found: install it (Debian: apt-get install bubblewrap)", err)
	}
	if opts.Bwrap, err = filepath.Abs(bwrap); err != nil {
		return nil, infra("bubblewrap", err)
	}
	self, err := thisProcess()
	if err != nil {
		return nil, infra("identify this process", err)
	}
	if err := prepareState(state); err != nil {
		return nil, infra("state folder", err)
	}
	b := &Backend{
		opts: opts, self: self, root: os.Geteuid() == 0, live: map[*box]struct{}{},
		seccomp:  seccompProgram(),
		groups:   findCgroups(state),
		starting: make(chan struct{}, 4*runtime.NumCPU()),
	}
	if b.etc, err = prepareEtc(state); err != nil {
		return nil, infra("prepare /etc", err)
	}
	b.init = filepath.Join(state, fmt.Sprintf("pid1-%x", sha256.Sum256(pid1)))
	if err := replaceFile(b.init, pid1, 0o755); err != nil {
		return nil, infra("write the sandbox's first process", err)
	}
	b.spawn = newSpawner()
	return b, nil
}

// Name is "local".
func (b *Backend) Name() string { return "local" }

// infra marks a failure of the infrastructure.
func infra(what string, err error) error {
	return fmt.Errorf("%w: %s: %w", sandbox.ErrInfrastructure, what, err)
}

// Start makes a sandbox: a private copy of spec.Dir and a uid of its own.
// Nothing runs yet.
func (b *Backend) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o := b.self
	o.Label, o.Created = spec.Owner, time.Now().UTC()
	first, count := b.opts.FirstUID, b.opts.UIDs
	if !b.root {
		first, count = 1, slots
	}
	s, err := takeSlot(b.opts.StateDir, o, first, count, rand.IntN(count))
	if err != nil {
		return nil, infra("start", err)
	}
	x := &box{
		backend: b,
		slot:    s,
		spec:    spec,
		limits:  spec.Limits.WithDefaults(),
		env:     sandbox.Environ(spec.Env),
		done:    make(chan struct{}),
	}
	if err := x.populate(); err != nil {
		s.release()
		return nil, infra("start", err)
	}
	x.expires = time.Now().Add(x.limits.Lifetime)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		s.release()
		return nil, fmt.Errorf("start: %w", os.ErrClosed)
	}
	b.live[x] = struct{}{}
	return x, nil
}

// Close closes every live sandbox.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.closed = true
	var live []*box
	for x := range b.live {
		live = append(live, x)
	}
	b.mu.Unlock()
	var errs []error
	for _, x := range live {
		errs = append(errs, x.Close())
	}
	b.spawn.close()
	b.groups.close()
	return errors.Join(errs...)
}

// forget is called by a sandbox that has been closed.
func (b *Backend) forget(x *box) {
	b.mu.Lock()
	delete(b.live, x)
	b.mu.Unlock()
}

// prepareEtc writes the /etc that sandboxes see, apart from what bwrapArgs
// binds from the host. It is the same for all sandboxes and trainers.
func prepareEtc(state string) (string, error) {
	dir := filepath.Join(state, "etc")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	for name, text := range map[string]string{
		"passwd":        "root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:1000:1000:agent:" + sandbox.HomeDir + ":/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"group":         "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
		"hosts":         "127.0.0.1 localhost sandbox\n::1 localhost\n",
		"hostname":      "sandbox\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
		"resolv.conf":   "",
	} {
		if err := replaceFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// replaceFile puts a file in place at once: another trainer may be using it.
func replaceFile(name string, data []byte, mode os.FileMode) error {
	tmp := fmt.Sprintf("%s.%d", name, os.Getpid())
	defer os.Remove(tmp)
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	if err := os.Chmod(tmp, mode); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// hostEtc are the parts of the host's /etc that programs need to start and
// that say nothing about the host beyond what is installed.
var hostEtc = []string{
	"/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
	"/etc/python3", "/etc/python3.11", "/etc/debian_version", "/etc/mime.types", "/etc/ssl/openssl.cnf",
}

// bwrapArgs is bubblewrap's command line up to the program.
func (b *Backend) bwrapArgs(s slot) []string {
	a := []string{
		b.opts.Bwrap,
		"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
		"--disable-userns",
		"--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL",
		"--uid", "1000", "--gid", "1000", "--hostname", "sandbox",
		"--proc", "/proc",
		"--dev", "/dev", "--size", strconv.Itoa(64 << 20), "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev",
	}
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32"} {
		on := filepath.Join(b.opts.Root, dir)
		info, err := os.Lstat(on)
		switch {
		case err != nil:
		case info.Mode()&os.ModeSymlink != 0:
			if target, err := os.Readlink(on); err == nil {
				a = append(a, "--symlink", target, dir)
			}
		default:
			a = append(a, "--ro-bind", on, dir)
		}
	}
	a = append(a, "--perms", "755", "--dir", "/etc")
	for _, name := range []string{"passwd", "group", "hosts", "hostname", "nsswitch.conf", "resolv.conf"} {
		a = append(a, "--ro-bind", filepath.Join(b.etc, name), "/etc/"+name)
	}
	for _, path := range hostEtc {
		a = append(a, "--ro-bind-try", filepath.Join(b.opts.Root, path), path)
	}
	for _, path := range b.opts.ReadOnly {
		a = append(a, "--ro-bind", path, path)
	}
	return append(a,
		"--bind", s.workspace(), sandbox.Workdir,
		"--bind", s.tmp(), "/tmp",
		"--ro-bind", b.init, pid1Path,
		"--dir", "/var", "--symlink", "/tmp", "/var/tmp",
		"--remount-ro", "/",
	)
}
