// Package fake is a sandbox backend in memory: a script answers the commands,
// and any operation can be made to fail, to hang or to end as a hostile
// command would. Nothing is run and nothing of the host is touched.
package fake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ssr-go/ssr/sandbox"
)

// Op names an operation that a Fault can strike.
type Op string

const (
	Start    Op = "start"
	Exec     Op = "exec"
	Read     Op = "read"
	Write    Op = "write"
	List     Op = "list"
	Upload   Op = "upload"
	Download Op = "download"
	Snapshot Op = "snapshot"
	Fork     Op = "fork"
	Harvest  Op = "harvest"
	Close    Op = "close"
	Sweep    Op = "sweep"
	Probe    Op = "probe"
)

// Fault makes operations fail. The zero fields of one do nothing.
type Fault struct {
	Op Op
	// Nth call of Op on the backend that is struck, from 1; 0 strikes every one.
	Nth int
	// Owner restricts the fault to sandboxes started with this label.
	Owner string
	// Delay passes before anything else; it ends early with the context.
	Delay time.Duration
	// Hang waits until the context or the sandbox ends.
	Hang bool
	// Err is returned instead of running the operation.
	Err error
	// Result is returned by an Exec instead of running the script.
	Result *sandbox.Result
}

// ErrLost is a ready infrastructure failure.
var ErrLost = fmt.Errorf("%w: sandbox lost (fake)", sandbox.ErrInfrastructure)

// Script answers a command. It may change the sandbox's files.
type Script func(ctx context.Context, s *Sandbox, cmd sandbox.Cmd) (sandbox.Result, error)

// Backend is a sandbox.Backend in memory.
type Backend struct {
	script Script

	mu     sync.Mutex
	faults []Fault
	calls  map[Op]int
	live   map[*Sandbox]struct{}
	closed bool
}

var _ sandbox.Backend = (*Backend)(nil)

// New makes a backend whose commands are answered by script; with nil, every
// command succeeds without output.
func New(script Script) *Backend {
	if script == nil {
		script = func(context.Context, *Sandbox, sandbox.Cmd) (sandbox.Result, error) { return sandbox.Result{}, nil }
	}
	return &Backend{script: script, calls: map[Op]int{}, live: map[*Sandbox]struct{}{}}
}

// Inject adds a fault; the first that matches a call strikes.
func (b *Backend) Inject(f Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, f)
}

// Calls is how often an operation was called.
func (b *Backend) Calls(op Op) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[op]
}

// Live is how many sandboxes are open: 0 at the end of a test without leaks.
func (b *Backend) Live() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.live)
}

// strike counts a call and applies the fault that matches it, if any.
func (b *Backend) strike(ctx context.Context, op Op, owner string, done <-chan struct{}) (*sandbox.Result, error) {
	b.mu.Lock()
	b.calls[op]++
	n := b.calls[op]
	var hit *Fault
	for i := range b.faults {
		f := &b.faults[i]
		if f.Op == op && (f.Nth == 0 || f.Nth == n) && (f.Owner == "" || f.Owner == owner) {
			hit = f
			break
		}
	}
	b.mu.Unlock()
	if hit == nil {
		return nil, ctx.Err()
	}
	var wait <-chan time.Time
	if hit.Delay > 0 {
		t := time.NewTimer(hit.Delay)
		defer t.Stop()
		wait = t.C
	}
	if hit.Hang || wait != nil {
		select {
		case <-wait: // never, for a plain Hang
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-done:
			return nil, sandbox.ErrClosed
		}
	}
	return hit.Result, hit.Err
}

// Name is "fake".
func (b *Backend) Name() string { return "fake" }

// Probe enforces nothing and says so.
func (b *Backend) Probe(ctx context.Context) (sandbox.Capabilities, error) {
	_, err := b.strike(ctx, Probe, "", nil)
	return sandbox.Capabilities{Enforced: map[string]string{}, Notes: []string{"fake: nothing is run"}}, err
}

// Sweep finds nothing.
func (b *Backend) Sweep(ctx context.Context) (int, error) {
	_, err := b.strike(ctx, Sweep, "", nil)
	return 0, err
}

// Start reads spec.Dir into memory; an empty Dir is an empty workspace.
func (b *Backend) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if _, err := b.strike(ctx, Start, spec.Owner, nil); err != nil {
		return nil, err
	}
	s := &Sandbox{Spec: spec, backend: b, files: map[string]File{}, done: make(chan struct{})}
	if spec.Dir != "" {
		if err := s.load(spec.Dir); err != nil {
			return nil, fmt.Errorf("%w: %w", sandbox.ErrInfrastructure, err)
		}
	}
	s.base = maps.Clone(s.files)
	return b.add(s)
}

// add makes a sandbox one of the living.
func (b *Backend) add(s *Sandbox) (sandbox.Sandbox, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, os.ErrClosed
	}
	b.live[s] = struct{}{}
	return s, nil
}

// Close closes what is live.
func (b *Backend) Close() error {
	b.mu.Lock()
	b.closed = true
	live := slices.Collect(maps.Keys(b.live))
	b.mu.Unlock()
	var errs []error
	for _, s := range live {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// File is a regular file, or a link when Mode has fs.ModeSymlink.
type File struct {
	Mode uint32
	Data []byte
}

// Sandbox is a live fake.
type Sandbox struct {
	Spec sandbox.Spec

	backend *Backend
	mu      sync.Mutex
	files   map[string]File
	base    map[string]File
	once    sync.Once
	done    chan struct{}
	err     error
}

func (s *Sandbox) load(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f := File{Mode: uint32(info.Mode().Perm())}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			f = File{Mode: uint32(fs.ModeSymlink), Data: []byte(target)}
		case info.Mode().IsRegular():
			if f.Data, err = os.ReadFile(name); err != nil {
				return err
			}
		default:
			return nil
		}
		s.files[filepath.ToSlash(rel)] = f
		return nil
	})
}

// Get returns a file of the workspace, for scripts.
func (s *Sandbox) Get(name string) (File, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[name]
	return f, ok
}

// Put sets a file of the workspace, for scripts.
func (s *Sandbox) Put(name string, f File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = f
}

// Remove deletes a file of the workspace, for scripts.
func (s *Sandbox) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, name)
}

// Names lists the files of the workspace in order.
func (s *Sandbox) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.files))
}

func (s *Sandbox) strike(ctx context.Context, op Op) (*sandbox.Result, error) {
	select {
	case <-s.done:
		return nil, sandbox.ErrClosed
	default:
		return s.backend.strike(ctx, op, s.Spec.Owner, s.done)
	}
}

// Exec implements sandbox.Sandbox. A script that outlasts its deadline is not
// stopped, but its context ends and its result becomes a time-out.
func (s *Sandbox) Exec(ctx context.Context, cmd sandbox.Cmd) (sandbox.Result, error) {
	if r, err := s.strike(ctx, Exec); err != nil {
		return sandbox.Result{}, err
	} else if r != nil {
		return *r, nil
	}
	timeout := cmd.Timeout
	if timeout <= 0 {
		timeout = s.Spec.Limits.WithDefaults().Command
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	begin := time.Now()
	r, err := s.backend.script(limited, s, cmd)
	r.Wall = time.Since(begin)
	switch {
	case ctx.Err() != nil:
		return sandbox.Result{}, ctx.Err()
	case limited.Err() != nil:
		return sandbox.Result{Stdout: r.Stdout, Stderr: r.Stderr, Exit: -1, Signal: 9, TimedOut: true, Wall: r.Wall}, nil
	}
	return r, err
}

// clean makes a path relative to the workspace, or fails when it leaves it.
func clean(op, name string) (string, error) {
	rel := path.Clean(strings.TrimPrefix(name, sandbox.Workdir+"/"))
	if !filepath.IsLocal(rel) || rel == "." {
		return "", &fs.PathError{Op: op, Path: name, Err: errors.New("not a path inside the workspace")}
	}
	return rel, nil
}

// ReadFile implements sandbox.Sandbox. Links are not followed.
func (s *Sandbox) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	if _, err := s.strike(ctx, Read); err != nil {
		return nil, err
	}
	rel, err := clean("read file", name)
	if err != nil {
		return nil, err
	}
	f, ok := s.Get(rel)
	if !ok {
		return nil, &fs.PathError{Op: "read file", Path: name, Err: fs.ErrNotExist}
	}
	if f.Mode&uint32(fs.ModeSymlink) != 0 {
		return nil, &fs.PathError{Op: "read file", Path: name, Err: errors.New("not a regular file")}
	}
	return bytes.Clone(f.Data[:min(int64(len(f.Data)), limit)]), nil
}

// WriteFile implements sandbox.Sandbox.
func (s *Sandbox) WriteFile(ctx context.Context, name string, data []byte, mode uint32) error {
	if _, err := s.strike(ctx, Write); err != nil {
		return err
	}
	rel, err := clean("write file", name)
	if err != nil {
		return err
	}
	s.Put(rel, File{Mode: mode & 0o777, Data: bytes.Clone(data)})
	return nil
}

// Harvest implements sandbox.Sandbox.
func (s *Sandbox) Harvest(ctx context.Context) ([]sandbox.Change, error) {
	if _, err := s.strike(ctx, Harvest); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var changes []sandbox.Change
	for name, f := range s.files {
		old, ok := s.base[name]
		if inGit(name) || ok && old.Mode&^0o677 == f.Mode&^0o677 && bytes.Equal(old.Data, f.Data) {
			continue
		}
		changes = append(changes, sandbox.Change{Path: name, Mode: f.Mode, Data: bytes.Clone(f.Data)})
	}
	for name := range s.base {
		if _, ok := s.files[name]; !ok && !inGit(name) {
			changes = append(changes, sandbox.Change{Path: name, Deleted: true})
		}
	}
	slices.SortFunc(changes, func(a, b sandbox.Change) int { return strings.Compare(a.Path, b.Path) })
	return changes, nil
}

func inGit(name string) bool { return slices.Contains(strings.Split(name, "/"), ".git") }

// Close implements sandbox.Sandbox.
func (s *Sandbox) Close() error {
	s.once.Do(func() {
		_, s.err = s.backend.strike(context.Background(), Close, s.Spec.Owner, nil)
		close(s.done)
		s.backend.mu.Lock()
		delete(s.backend.live, s)
		s.backend.mu.Unlock()
	})
	return s.err
}
