// Package sandbox runs untrusted commands on a private writable copy of a
// folder. What a command did (exit, signal, deadline, limits hit) is a value;
// only a failure of the infrastructure is an error.
package sandbox

import (
	"context"
	"errors"
	"io"
	"time"
)

// ErrInfrastructure is wrapped by every error that is not the caller's fault
// and not an outcome of the command: the sandbox was lost, the host is out of
// disk, the runtime is missing. Such an episode is retried, then masked.
var ErrInfrastructure = errors.New("sandbox infrastructure failure")

// ErrClosed is returned by the methods of a sandbox after Close, and by an
// Exec that Close interrupted.
var ErrClosed = errors.New("sandbox is closed")

// Workdir is where the workspace appears inside every sandbox.
const Workdir = "/workspace"

// Limits bound a sandbox. Zero means the backend's documented default, never "unlimited".
type Limits struct {
	// Lifetime is the deadline of the whole sandbox from Start.
	Lifetime time.Duration
	// Command is the default wall-clock limit of one Exec.
	Command time.Duration
	// CPU seconds of one Exec.
	CPU time.Duration
	// Memory in bytes.
	Memory int64
	// Processes and threads alive at once.
	Processes int
	// FileSize is the largest file a process may write, in bytes.
	FileSize int64
	// Disk is the most the workspace and /tmp may grow, in bytes.
	Disk int64
	// OpenFiles a process may hold.
	OpenFiles int
	// Output is the most that stdout and stderr of one Exec may print together, in bytes.
	Output int64
}

// Spec describes a sandbox to start.
type Spec struct {
	// Dir is a folder of the host whose content becomes the workspace. It is
	// copied or layered, never written.
	Dir string
	// Frozen promises that nothing in Dir changes once a sandbox of it has been
	// started, so that sandboxes may share one copy. Other content has another Dir.
	Frozen bool
	// Env is laid over BaseEnv; the two are the whole environment inside. Nothing of
	// the host's is passed on.
	Env    map[string]string
	Limits Limits
	// Owner labels the sandbox for sweeping, for instance a run and episode id.
	Owner string
}

// Cmd is one command. Args[0] is looked up in the sandbox's PATH.
type Cmd struct {
	Args []string
	Dir  string // relative to Workdir, "" for Workdir itself
	Env  map[string]string
	// Stdin is read until it or the command ends; nil is an empty one. A Read
	// that blocks longer than the command outlives Exec.
	Stdin io.Reader
	// Timeout overrides Limits.Command when > 0.
	Timeout time.Duration
}

// Result is what became of a command.
type Result struct {
	// Stdout and Stderr, cut at Limits.Output.
	Stdout, Stderr []byte
	// Exit is the exit status, or -1 when a signal ended the command.
	Exit int
	// Signal that ended it, 0 for none.
	Signal int
	// TimedOut: the wall-clock limit ended it, with its whole process tree.
	TimedOut bool
	// Truncated: the output limit ended it.
	Truncated bool
	// DiskFull: the disk limit ended it.
	DiskFull bool
	// OutOfMemory is set where the backend can tell.
	OutOfMemory bool
	Wall        time.Duration
	// CPU is the processor time the command used, where the backend can tell.
	// The CPU limit ends a command with SIGXCPU.
	CPU time.Duration
}

// OK reports a normal exit with status 0.
func (r Result) OK() bool { return r.Exit == 0 && !r.TimedOut && !r.Truncated && !r.DiskFull }

// Sandbox is a live sandbox. Methods may be called from one goroutine at a
// time; Close may be called from any, more than once.
type Sandbox interface {
	// Exec runs a command to its end. When it returns, no process of the
	// command is alive.
	Exec(ctx context.Context, cmd Cmd) (Result, error)
	// ReadFile reads a regular file, path relative to Workdir, at most limit bytes.
	// It never follows a symbolic link out of the workspace.
	ReadFile(ctx context.Context, path string, limit int64) ([]byte, error)
	// WriteFile creates or replaces a regular file below Workdir, with its folders.
	WriteFile(ctx context.Context, path string, data []byte, mode uint32) error
	// List names what a folder of the workspace holds, sorted. It follows no link
	// out of the workspace.
	List(ctx context.Context, path string) ([]Entry, error)
	// Upload unpacks a tar stream of files, folders and symbolic links below a
	// folder of the workspace, which is made where it is missing. Files and links
	// in the way are replaced. A name that leaves the folder, any other kind of
	// entry, and more bytes than Limits.Disk end it with an error; what was
	// unpacked until then stays.
	Upload(ctx context.Context, path string, tar io.Reader) error
	// Download writes a file or folder of the workspace as a tar stream, names
	// relative to the folder and in order, no link followed. Pipes, sockets and
	// devices are left out.
	Download(ctx context.Context, path string, tar io.Writer) error
	// Snapshot writes the workspace as it is now, .git included, into dir, a folder
	// of the host that is new or empty. A sandbox started with Spec.Dir = dir is a
	// fork of this one; the folder is the caller's to remove.
	Snapshot(ctx context.Context, dir string) error
	// Fork starts a sandbox like this one, with the same Spec and changes, on a
	// workspace of its own that begins as this one is now; /tmp is empty. It takes
	// time by what has changed, not by what the workspace holds, where the backend
	// can layer workspaces.
	Fork(ctx context.Context) (Sandbox, error)
	// Harvest reports how the workspace differs from Spec.Dir. It never runs a
	// program on the host over what the sandbox wrote.
	Harvest(ctx context.Context) ([]Change, error)
	Close() error
}

// Entry is one name in a folder of the workspace.
type Entry struct {
	Name string
	// Mode has the permission bits and, for a folder or link, fs.ModeDir or
	// fs.ModeSymlink.
	Mode uint32
	// Size in bytes, of a file.
	Size int64
}

// Change is one path that differs from the original workspace.
type Change struct {
	// Path is slash-separated and relative.
	Path string
	// Deleted: the path existed and is gone.
	Deleted bool
	// Mode is the file's permission bits and, for a link, fs.ModeSymlink.
	Mode uint32
	// Data is the new content (the target, for a symbolic link).
	Data []byte
	// Skipped says why an entry was not read: "fifo", "device", "socket", "too large".
	Skipped string
}

// Backend makes sandboxes.
type Backend interface {
	Name() string
	// Probe finds out what this host can enforce.
	Probe(ctx context.Context) (Capabilities, error)
	Start(ctx context.Context, spec Spec) (Sandbox, error)
	// Sweep removes what dead trainers left behind and returns how many sandboxes that was.
	Sweep(ctx context.Context) (int, error)
	Close() error
}

// Capabilities maps a protection ("memory", "processes", "network", "disk", …)
// to how it is enforced; an empty string says it is not, and why is in Notes.
type Capabilities struct {
	Enforced map[string]string
	Notes    []string
}
