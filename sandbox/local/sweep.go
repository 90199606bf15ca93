//go:build linux

package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ssr-go/ssr/sandbox/harvest"
)

// Leftover is a sandbox whose trainer no longer runs.
type Leftover struct {
	Dir     string    `json:"dir"`
	Owner   string    `json:"owner"`
	Trainer int       `json:"trainer_pid"`
	Created time.Time `json:"created"`
}

// Leftovers lists what Sweep would remove.
func (b *Backend) Leftovers() ([]Leftover, error) {
	list, err := os.ReadDir(b.opts.StateDir)
	if err != nil {
		return nil, infra("sweep", err)
	}
	dead := []Leftover{}
	for _, e := range list {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := filepath.Join(b.opts.StateDir, e.Name())
		if o, err := readOwner(dir); err == nil && !o.alive(b.self.Boot) {
			dead = append(dead, Leftover{dir, o.Label, o.PID, o.Created})
		}
	}
	return dead, nil
}

// Sweep implements sandbox.Backend: it kills and removes what belongs to the
// slots of trainers that no longer run.
func (b *Backend) Sweep(ctx context.Context) (int, error) {
	list, err := os.ReadDir(b.opts.StateDir)
	if err != nil {
		return 0, infra("sweep", err)
	}
	if e := b.opts.Engine; e != nil {
		if err := e.Sweep(ctx, b.opts.StateDir, b.slotAlive); err != nil {
			return 0, infra("sweep", err)
		}
	}
	n := 0
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		dir := filepath.Join(b.opts.StateDir, e.Name())
		if number, err := strconv.Atoi(e.Name()); err == nil {
			o, err := readOwner(dir)
			if err != nil || o.alive(b.self.Boot) {
				continue // a slot has a record from the start: without one it is being removed
			}
			if err := b.sweepSlot(slot{dir: dir, number: number}); err != nil {
				return n, infra("sweep", err)
			}
			n++
			continue
		}
		// Half-made and half-removed folders and copies carry their maker's pid in the name.
		part := strings.Split(e.Name(), "-")
		if len(part) < 3 || part[0] != "new" && part[0] != "old" && part[0] != "lower" {
			continue
		}
		if pid, err := strconv.Atoi(part[1]); err == nil {
			if _, err := startTime(pid); err == nil {
				continue
			}
			if err := harvest.RemoveAll(dir); err != nil {
				return n, infra("sweep", err)
			}
		}
	}
	return n, nil
}

// slotAlive reports whether a slot is there and its trainer runs.
func (b *Backend) slotAlive(number int) bool {
	o, err := readOwner(filepath.Join(b.opts.StateDir, strconv.Itoa(number)))
	return err == nil && o.alive(b.self.Boot)
}

func (b *Backend) sweepSlot(s slot) error {
	// The processes have had their parent-death signal; this is for a host
	// where it came too late.
	for deadline := time.Now().Add(5 * time.Second); ; {
		left := b.processesOf(s)
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of %s do not die", left, s.dir)
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.groups.at(s.number).remove()
	return s.release()
}

// processesOf finds the launcher of a slot by its command line and, where
// the slot has a uid of its own, everything that runs as it.
func (b *Backend) processesOf(s slot) []int {
	var found []int
	bind := []byte("\x00" + s.workspace() + "\x00")
	uid := []byte(fmt.Sprintf("\nUid:\t%d\t", s.number))
	list, _ := os.ReadDir("/proc")
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		args, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		mine := bytes.Contains(args, bind)
		if !mine && b.root {
			status, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
			mine = bytes.Contains(status, uid) && !bytes.Contains(status, []byte("\nState:\tZ"))
		}
		if mine {
			found = append(found, pid)
		}
	}
	return found
}

func readOwner(dir string) (owner, error) {
	var o owner
	data, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(data, &o)
}
