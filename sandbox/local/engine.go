//go:build linux

package local

import (
	"context"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/pid1"
)

// Engine makes the cells of a backend in place of a launcher. The workspaces
// stay folders of this machine, and with them files, harvests and forks, so an
// engine must run on this machine too. Its methods may be called from any goroutine.
type Engine interface {
	// Name of the backend.
	Name() string
	// Capabilities tells what the engine enforces, and how, over what the backend
	// does itself. It fails when a protection is missing that must not be.
	Capabilities(ctx context.Context) (sandbox.Capabilities, error)
	NewCell(ctx context.Context, spec CellSpec) (Cell, error)
	// Sweep removes the cells of a state folder whose slots are not alive.
	Sweep(ctx context.Context, state string, alive func(slot int) bool) error
	Close() error
}

// CellSpec describes a cell to be made.
type CellSpec struct {
	// State is the state folder and Slot the sandbox's number in it: together
	// they name the cell on this machine.
	State string
	Slot  int
	// Dir is a folder for the engine's own files; it goes with the sandbox.
	Dir string
	// Workspace and Tmp are the folders of the host to show at sandbox.Workdir and
	// /tmp, ReadOnly those to show at the same place.
	Workspace, Tmp string
	ReadOnly       []string
	// UID and GID on the host of everything that runs inside.
	UID, GID int
	// Filter is the seccomp filter, nil for none.
	Filter []byte
	Limits sandbox.Limits
	Owner  string
}

// Cell is a set of namespaces with our first process in it, which runs commands
// one after the other. The workspace outlives it.
type Cell interface {
	// Send begins a command whose stdin, stdout and stderr are descriptors that
	// the caller closes afterwards.
	Send(r pid1.Request, fds [3]int) error
	// Receive waits for the command's end; then nothing that it started is alive.
	Receive() (pid1.Reply, error)
	// Interrupt ends the command that runs, so that Receive returns, and keeps the
	// cell; false where it cannot.
	Interrupt() bool
	// Kill ends every process of the cell and returns when none is left.
	Kill()
	// Exited is closed when the cell has ended.
	Exited() <-chan struct{}
	// PID on this machine of the first process, 0 where it has none.
	PID() int
	// Why a cell has ended that nobody killed: for want of memory, or by the
	// engine's failure; neither means by the doing of what ran inside.
	Why() (outOfMemory bool, err error)
}
