//go:build linux

// Package pid1 is the first process of a sandbox (init/pid1.c), the two ways to
// talk to it, a socket that passes descriptors and a stream of frames, and the
// launcher that makes the sandbox's namespaces (init/launch.c), in one program.
package pid1

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"
	"time"
	"unsafe"
)

//go:generate init/build.sh amd64
//go:generate init/build.sh arm64

// Program is the static executable for this processor.
func Program() []byte { return program }

// LaunchCommand is the command line that makes a sandbox: root, a folder with the
// program at ProgramPath, becomes its root, read-only; workspace and tmp are shown
// writable, and each of shown read-only. The program must not be started as root, and
// needs Linux 5.12 and user namespaces for unprivileged users. Descriptor 3 is the
// channel, 2 is for what failed, and 4 holds the seccomp filter, where there is one.
func LaunchCommand(root, workspace, tmp string, filtered bool, shown []Shown) []string {
	filter := "open"
	if filtered {
		filter = "filter"
	}
	a := []string{root + ProgramPath, "launch", root, workspace, tmp, filter}
	for _, s := range shown {
		a = append(a, s.Host, s.Inside)
	}
	return a
}

// ProgramPath of the program inside a sandbox.
const ProgramPath = "/.pid1"

// Shown is a folder or file of the host and where it is shown, a path below the
// sandbox's root without the leading slash.
type Shown struct{ Host, Inside string }

// StreamArgument makes the program serve a Stream on its stdin and stdout.
const StreamArgument = "stream"

// UserNamespaceArgument makes the program make a user namespace and end. Until
// it is reaped, its parent can fill in the namespace's maps and open it.
const UserNamespaceArgument = "user-namespace"

// Limit is one resource limit of the command's processes.
type Limit struct {
	Resource   int
	Soft, Hard uint64
}

// Request is a command to be run.
type Request struct {
	Folder    string
	Args, Env []string
	Limits    []Limit
}

// Encode lays out what pid1.c calls struct request. No string may hold a NUL.
func (r Request) Encode() []byte {
	var b bytes.Buffer
	put := func(v ...uint64) {
		for _, n := range v {
			b.Write(binary.NativeEndian.AppendUint64(nil, n))
		}
	}
	put(uint64(len(r.Limits)), uint64(len(r.Args)), uint64(len(r.Env)))
	for _, l := range r.Limits {
		put(uint64(l.Resource), l.Soft, l.Hard)
	}
	put(make([]uint64, len(r.Args)+len(r.Env)+2)...)
	for _, list := range [][]string{{r.Folder}, r.Args, r.Env} {
		for _, s := range list {
			b.WriteString(s)
			b.WriteByte(0)
		}
	}
	return b.Bytes()
}

// The pointers that the request has room for are 64 bits wide.
var _ [0]struct{} = [8 - unsafe.Sizeof(uintptr(0))]struct{}{}

// Reply is what the first process says when a command has ended and nothing
// that it started is alive.
type Reply struct {
	Status       syscall.WaitStatus
	User, System time.Duration
}

// replySize of struct reply in pid1.c, in bytes.
const replySize = 32

// DecodeReply reads struct reply.
func DecodeReply(b []byte) (Reply, error) {
	if len(b) != replySize {
		return Reply{}, fmt.Errorf("reply of %d bytes", len(b))
	}
	e := binary.NativeEndian
	return Reply{
		Status: syscall.WaitStatus(e.Uint32(b)),
		User:   time.Duration(e.Uint64(b[8:])) * time.Microsecond,
		System: time.Duration(e.Uint64(b[16:])) * time.Microsecond,
	}, nil
}
