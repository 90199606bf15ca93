//go:build linux

package local

import (
	"fmt"
	"os"
	"sync"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
)

// idleLowers is how many copies are kept that no sandbox uses.
const idleLowers = 8

// lowers holds what lies below overlays: read-only copies of sandboxes' sources.
// Those of frozen sources are shared.
type lowers struct {
	state string

	mu    sync.Mutex
	count int               // tells when a copy was last used
	known map[string]*lower // by Spec.Dir, of frozen sources
}

// lower is one of them. Its files belong to root.
type lower struct {
	dir   string
	base  *harvest.Base
	ready chan struct{} // closed when base or err is set
	err   error

	key   string // in lowers.known, "" where it is not shared
	users int    // under lowers.mu, as used
	used  int
}

// of returns a copy of a sandbox's source, which is to be given back.
func (c *lowers) of(spec sandbox.Spec) (*lower, error) {
	c.mu.Lock()
	x := c.known[spec.Dir]
	fresh := !spec.Frozen || x == nil
	if fresh {
		x = &lower{ready: make(chan struct{})}
		if spec.Frozen {
			x.key = spec.Dir
			c.known[x.key] = x
		}
	}
	x.users++
	c.mu.Unlock()
	if fresh {
		// Backends of one process may share a state folder.
		if x.dir, x.err = os.MkdirTemp(c.state, fmt.Sprintf("lower-%d-", os.Getpid())); x.err == nil {
			x.base, x.err = harvest.Copy(spec.Dir, x.dir, harvest.Keep)
		}
		close(x.ready)
	}
	<-x.ready
	if x.err != nil {
		c.giveBack(x)
		return nil, x.err
	}
	return x, nil
}

// share takes a copy once more.
func (c *lowers) share(x *lower) {
	c.mu.Lock()
	x.users++
	c.mu.Unlock()
}

// giveBack says that a sandbox does not use a copy any more.
func (c *lowers) giveBack(x *lower) {
	c.mu.Lock()
	x.users--
	c.count++
	x.used = c.count
	var gone []*lower
	if x.err != nil && c.known[x.key] == x {
		delete(c.known, x.key) // the next one tries again
	}
	if x.users == 0 && c.known[x.key] != x {
		gone = append(gone, x)
	}
	gone = append(gone, c.evictLocked(idleLowers)...)
	c.mu.Unlock()
	removeLowers(gone)
}

// evictLocked forgets the copies that have been idle longest, but for some.
func (c *lowers) evictLocked(keep int) (gone []*lower) {
	for {
		var oldest *lower
		idle := 0
		for _, x := range c.known {
			if x.users == 0 {
				idle++
				if oldest == nil || x.used < oldest.used {
					oldest = x
				}
			}
		}
		if idle <= keep {
			return gone
		}
		delete(c.known, oldest.key)
		gone = append(gone, oldest)
	}
}

// close removes every copy; no sandbox is left.
func (c *lowers) close() {
	c.mu.Lock()
	gone := c.evictLocked(0)
	c.mu.Unlock()
	removeLowers(gone)
}

func removeLowers(gone []*lower) {
	for _, x := range gone {
		if x.dir != "" { // it could be made
			_ = harvest.RemoveAll(x.dir) // what is left, Sweep removes
		}
	}
}
