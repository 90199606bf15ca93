//go:build linux

// Package local runs sandboxes on this machine, in namespaces that a launcher
// makes as an unprivileged user: one of its own per live sandbox when the trainer
// is root.
package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
	"github.com/ssr-go/ssr/sandbox/pid1"
)

// Options configure the backend. The zero value works.
type Options struct {
	// StateDir holds the workspaces of live sandboxes. Trainers may share it. By
	// default it is a folder named after the user in /dev/shm, where making and
	// removing a file takes microseconds (on ext4 up to a millisecond), or in
	// the temporary folder where /dev/shm has not defaultStateRoom free.
	StateDir string
	// FirstUID and UIDs are the range of host uids that sandboxes run as when
	// the trainer is root, one each. No user or container of the host may use
	// them. By default 1,879,048,192 and 65,536; in a container whose users end
	// below that, 30,000 and 30,000.
	FirstUID, UIDs int
	// Launcher makes the namespaces: LauncherNative, LauncherBwrap or "", which is
	// the native one where it works.
	Launcher string
	// Bwrap is the bubblewrap program, by default the one in PATH.
	Bwrap string
	// Root is the folder that holds the system the sandbox sees, by default "/", of
	// which only the system folders are shown. The sandboxes' users must be able to
	// enter it.
	Root string
	// ReadOnly lists further folders and files of the host to show, read-only, at
	// the same place, which must be outside the system folders, /tmp and the workspace.
	ReadOnly []string
	// Allow lists protections that may be missing: "filesystem", "network",
	// "user", "syscalls". Without it, a sandbox that the kernel does not confine
	// in all of them is killed before it runs anything. "syscalls" also leaves
	// out the filter.
	Allow []string
	// Copy makes every workspace a copy, also where the kernel can make overlays.
	Copy bool
	// Engine makes the cells in place of a launcher. Launcher, Bwrap and Root are
	// then void.
	Engine Engine
	// Bounds of a harvest; zero fields mean harvest.DefaultBounds.
	Bounds harvest.Bounds
}

// slots is how many sandboxes can live at once when they share the trainer's uid.
const slots = 65536

// defaultUIDs is far above what distributions and container engines hand out,
// unless this user namespace has no such uids.
func defaultUIDs() (first, count int) {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err == nil {
		for line := range strings.Lines(string(text)) {
			var inside, outside, n int
			if _, err := fmt.Sscan(line, &inside, &outside, &n); err == nil && inside+n > 0x7001_0000 {
				return 0x7000_0000, 0x1_0000
			}
		}
	}
	return 30_000, 30_000
}

// Backend is a sandbox.Backend. It may be used from any goroutine.
type Backend struct {
	opts  Options
	self  owner
	root  bool // sandboxes get a uid each
	spawn spawner

	launcher      string   // LauncherNative or LauncherBwrap
	refused       error    // why it is not the native one, where nobody asked for the other
	rootfs        string   // see prepareRoot
	shown         []string // see Options.shown
	disableUserns bool     // whether this bubblewrap can forbid user namespaces
	filter        []byte   // of system calls
	groups        *cgroups
	starting      chan struct{} // bounds how many launchers set up at once

	overlays *overlays // nil where workspaces are copies, for the reason of
	copied   error
	lowers   *lowers
	userns   *userNamespaces

	mu     sync.Mutex
	live   map[*box]struct{}
	closed bool
}

var _ sandbox.Backend = (*Backend)(nil)

// New prepares the state folder. It starts nothing; Probe says whether sandboxes can run.
func New(opts Options) (*Backend, error) {
	if opts.StateDir == "" {
		opts.StateDir = filepath.Join(stateParent(), fmt.Sprintf("ssr-sandbox-%d", os.Geteuid()))
	}
	state, err := filepath.Abs(opts.StateDir)
	if err != nil {
		return nil, infra("state folder", err)
	}
	opts.StateDir = state
	if opts.FirstUID == 0 && opts.UIDs == 0 {
		opts.FirstUID, opts.UIDs = defaultUIDs()
	}
	if opts.FirstUID < 1 || opts.UIDs < 1 {
		return nil, fmt.Errorf("uid range %d+%d: a sandbox must not run as root", opts.FirstUID, opts.UIDs)
	}
	if err := checkReadOnly(opts.ReadOnly); err != nil {
		return nil, err
	}
	for _, p := range opts.Allow {
		if _, ok := protections[p]; !ok {
			return nil, fmt.Errorf("allow: %q is no protection that can be given up; there are %q", p, slices.Sorted(maps.Keys(protections)))
		}
	}
	if opts.Root == "" {
		opts.Root = "/"
	}
	if opts.Engine == nil {
		if opts, err = opts.withBwrap(); err != nil {
			return nil, err
		}
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
		filter:   pid1.Filter(),
		groups:   &cgroups{},
		starting: make(chan struct{}, 4*runtime.NumCPU()),
	}
	if opts.Engine != nil {
		return b, nil // which sees this machine's mounts only
	}
	b.groups = findCgroups(state)
	if b.shown, err = opts.shown(); err != nil {
		return nil, infra("root folder", err)
	}
	if b.rootfs, err = prepareRoot(opts); err != nil {
		return nil, infra("prepare the sandboxes' root folder", err)
	}
	b.spawn = spawner{newThread(), -1}
	switch {
	case opts.Copy:
		b.copied = errors.New("by configuration")
	case b.groups.parent["memory"] == "":
		b.copied = errors.New("no writable memory control group bounds a file system in memory")
	default:
		b.overlays, b.copied = newOverlays(state, b.rootfs+pid1.ProgramPath, opts.FirstUID, b.needed())
	}
	if b.overlays != nil {
		b.spawn.home = b.overlays.host
		b.lowers = &lowers{state: state, known: map[string]*lower{}}
		b.userns = &userNamespaces{}
	}
	if err := b.chooseLauncher(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// needed are the places of this machine that a launcher uses.
func (b *Backend) needed() []string {
	all := []string{"/dev", "/proc", "/etc"}
	if b.opts.Bwrap != "" {
		all = append(all, b.opts.Bwrap)
	}
	for _, name := range systemFolders {
		all = append(all, "/"+name)
	}
	for _, name := range b.shown {
		all = append(all, filepath.Join(b.opts.Root, name))
	}
	return append(all, b.opts.ReadOnly...)
}

// defaultStateRoom is how much room /dev/shm must have to be preferred.
const defaultStateRoom = 2 << 30

func stateParent() string {
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err == nil && inMemory(shm) &&
		st.Flags&unix.ST_NOEXEC == 0 && int64(st.Bavail)*st.Bsize >= defaultStateRoom {
		return shm
	}
	return os.TempDir()
}

// inMemory reports whether a folder is on a tmpfs.
func inMemory(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

// Name is "local", or the engine's.
func (b *Backend) Name() string {
	if b.opts.Engine != nil {
		return b.opts.Engine.Name()
	}
	return "local"
}

// infra marks a failure of the infrastructure.
func infra(what string, err error) error {
	return fmt.Errorf("%w: %s: %w", sandbox.ErrInfrastructure, what, err)
}

// Start makes a sandbox: a workspace and a uid of its own. Nothing runs yet.
func (b *Backend) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if info, err := os.Stat(spec.Dir); err != nil {
		return nil, fmt.Errorf("start: workspace source: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("start: workspace source %s is not a folder", spec.Dir)
	}
	return b.start(ctx, spec, nil)
}

// start makes a sandbox, a fork of another where that is not nil.
func (b *Backend) start(ctx context.Context, spec sandbox.Spec, from *box) (sandbox.Sandbox, error) {
	o := b.self
	o.Label, o.Created = spec.Owner, time.Now().UTC()
	first, count := b.opts.FirstUID, b.opts.UIDs
	if !b.root {
		first, count = 1, slots
	}
	wanted, userns := first+rand.IntN(count), -1
	if b.overlays != nil {
		wanted, userns = b.userns.take(wanted)
	}
	s, err := takeSlot(b.opts.StateDir, o, first, count, wanted-first)
	if userns >= 0 && s.number != wanted {
		unix.Close(userns)
		userns = -1
	}
	if err != nil {
		return nil, infra("start", err)
	}
	x := &box{
		backend: b,
		slot:    s,
		userns:  userns,
		spec:    spec,
		limits:  spec.Limits.WithDefaults(),
		env:     sandbox.Environ(spec.Env),
		done:    make(chan struct{}),
	}
	if err := x.populate(ctx, from); err != nil {
		return nil, infra("start", errors.Join(err, x.release()))
	}
	x.expires = time.Now().Add(x.limits.Lifetime)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("start: %w", errors.Join(os.ErrClosed, x.release()))
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
	if b.opts.Engine != nil {
		return errors.Join(append(errs, b.opts.Engine.Close())...)
	}
	b.spawn.close()
	if b.overlays != nil {
		b.overlays.close()
		b.userns.close()
		b.lowers.close()
	}
	b.groups.close()
	return errors.Join(errs...)
}

// forget is called by a sandbox that has been closed.
func (b *Backend) forget(x *box) {
	b.mu.Lock()
	delete(b.live, x)
	b.mu.Unlock()
}
