//go:build linux

package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox/harvest"
)

// A slot is a folder of the state folder that belongs to one live sandbox:
//
//	<state>/<number>/owner.json   who owns it, see owner
//	<state>/<number>/workspace    seen as /workspace
//	<state>/<number>/tmp          seen as /tmp
//
// The number is the sandbox's uid on the host when the trainer is root. Taking
// a number is one rename, so several trainers share a state folder safely.
type slot struct {
	dir    string
	number int
}

func (s slot) workspace() string { return filepath.Join(s.dir, "workspace") }
func (s slot) tmp() string       { return filepath.Join(s.dir, "tmp") }

// owner is the ownership record of a slot: the process that must be alive for
// the sandbox to be wanted.
type owner struct {
	PID     int       `json:"pid"`
	Start   uint64    `json:"start"` // of the process, in clock ticks since boot
	Boot    string    `json:"boot"`  // the kernel's boot id
	Label   string    `json:"label"`
	Created time.Time `json:"created"`
}

const ownerFile = "owner.json"

// thisProcess describes the running trainer.
func thisProcess() (owner, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return owner{}, err
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return owner{}, err
	}
	return owner{PID: os.Getpid(), Start: start, Boot: string(bytes.TrimSpace(boot))}, nil
}

// alive reports whether the process that wrote the record still runs.
func (o owner) alive(boot string) bool {
	if o.Boot != boot {
		return false
	}
	start, err := startTime(o.PID)
	return err == nil && start == o.Start
}

// startTime reads when a process started: with the pid it names a process for good.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses and may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// prepareState makes the state folder, or checks that the one there is ours:
// in a world-writable place another user may have made it first.
func prepareState(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a folder of user %d: remove it or choose another state folder", dir, os.Geteuid())
	}
	// Passable, so that a sandbox's own uid reaches its slot, but not listable.
	return os.Chmod(dir, 0o711)
}

// takeSlot claims a free number in [first, first+count), beginning at start.
func takeSlot(state string, o owner, first, count, start int) (slot, error) {
	record, err := json.Marshal(o)
	if err != nil {
		return slot{}, err
	}
	fresh, err := os.MkdirTemp(state, fmt.Sprintf("new-%d-", o.PID))
	if err != nil {
		return slot{}, err
	}
	if err := os.WriteFile(filepath.Join(fresh, ownerFile), record, 0o600); err != nil {
		os.RemoveAll(fresh)
		return slot{}, err
	}
	for i := range count {
		n := first + (start+i)%count
		dir := filepath.Join(state, strconv.Itoa(n))
		err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
		if err == nil {
			return slot{dir: dir, number: n}, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			os.RemoveAll(fresh)
			return slot{}, fmt.Errorf("claim %s: %w", dir, err)
		}
	}
	os.RemoveAll(fresh)
	return slot{}, fmt.Errorf("all %d numbers of %s are taken: close sandboxes, sweep, or widen the range", count, state)
}

// release removes the slot. The folder is renamed first, so that a half
// removed slot is never mistaken for a live one and the number is free at once.
func (s slot) release() error {
	gone := filepath.Join(filepath.Dir(s.dir), fmt.Sprintf("old-%d-%d-%d", os.Getpid(), s.number, time.Now().UnixNano()))
	if err := os.Rename(s.dir, gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		gone = s.dir
	}
	return harvest.RemoveAll(gone)
}
