//go:build linux

package local

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
)

// Sweep implements sandbox.Backend: it removes the slots of trainers that no
// longer run, with what still runs in them.
func (b *Backend) Sweep(ctx context.Context) (int, error) {
	list, err := os.ReadDir(b.opts.StateDir)
	if err != nil {
		return 0, infra("sweep", err)
	}
	n := 0
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		dir := filepath.Join(b.opts.StateDir, e.Name())
		number, err := strconv.Atoi(e.Name())
		if err == nil {
			o, err := readOwner(dir)
			if err != nil || o.alive(b.self.Boot) {
				continue // a slot has a record from the start: without one it is being removed
			}
			if err := (slot{dir: dir, number: number}).release(); err != nil {
				return n, infra("sweep", err)
			}
			n++
			continue
		}
		// Half-made and half-removed slots carry their maker's pid in the name.
		part := strings.Split(e.Name(), "-")
		if len(part) < 3 || part[0] != "new" && part[0] != "old" {
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

func readOwner(dir string) (owner, error) {
	var o owner
	data, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(data, &o)
}

// Probe implements sandbox.Backend.
func (b *Backend) Probe(ctx context.Context) (sandbox.Capabilities, error) {
	return sandbox.Capabilities{Enforced: map[string]string{
		"network": "network namespace", "filesystem": "mount namespace",
	}}, nil
}
