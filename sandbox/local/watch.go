//go:build linux

package local

import (
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox/harvest"
)

// excess is a limit that the watcher found exceeded.
type excess int

const (
	overDisk excess = iota + 1
	overCPU
)

const (
	// watchEvery is how often the watcher looks at first; it takes at most a
	// tenth of one processor, whatever the size of the workspace.
	watchEvery = 25 * time.Millisecond
	watchShare = 10
	// perEntry is charged for each file and folder, against millions of empty ones.
	perEntry = 1 << 10
	// maxDepth of folders; a deeper tree counts as over the limit, because
	// measuring it would cost a descriptor per level.
	maxDepth = 256
)

// watcher looks, while a command runs, at what no kernel limit covers here:
// the bytes on disk and the processor time of all processes together.
type watcher struct {
	box      *box
	exceeded chan excess // receives at most one
	quit     chan struct{}
	ended    chan struct{}
	cpu0     time.Duration
	kills0   int64
}

// consumption is what a command has used.
type consumption struct {
	cpu    time.Duration
	memory bool // the memory limit killed something
	disk   bool // the disk limit is exceeded, and more so than before
}

func (x *box) watch() *watcher {
	w := &watcher{box: x, exceeded: make(chan excess, 1), quit: make(chan struct{}), ended: make(chan struct{})}
	if x.group != nil {
		w.cpu0, _ = x.group.cpu()
		w.kills0 = x.group.kills()
	}
	go w.loop()
	return w
}

func (w *watcher) loop() {
	defer close(w.ended)
	every := watchEvery
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-w.quit:
			return
		case <-timer.C:
		}
		begin := time.Now()
		if w.full(w.box.usage()) {
			w.exceeded <- overDisk
			return
		}
		if g := w.box.group; g != nil {
			if t, ok := g.cpu(); ok && t-w.cpu0 > w.box.limits.CPU {
				w.exceeded <- overCPU
				return
			}
		}
		every = max(watchEvery, watchShare*time.Since(begin))
		timer.Reset(every)
	}
}

// full reports whether the workspace has grown too much. A command that
// shrinks a full one is let be.
func (w *watcher) full(bytes int64) bool {
	return bytes > w.box.disk && bytes-w.box.fresh > w.box.limits.Disk
}

// stop ends the watch and takes stock.
func (w *watcher) stop() consumption {
	close(w.quit)
	<-w.ended
	var c consumption
	bytes := w.box.usage()
	c.disk = w.full(bytes)
	w.box.disk = bytes
	if g := w.box.group; g != nil {
		if t, ok := g.cpu(); ok {
			c.cpu = t - w.cpu0
		}
		c.memory = g.kills() > w.kills0
	}
	return c
}

// usage is how many bytes the workspace and /tmp take on disk. Processes may
// be writing meanwhile.
func (x *box) usage() int64 {
	if x.layer != nil {
		return x.layer.usage()
	}
	return diskUsage(unix.AT_FDCWD, x.slot.workspace(), 0) + diskUsage(unix.AT_FDCWD, x.slot.tmp(), 0)
}

// tooDeep is a usage above every limit, and small enough to be added up.
const tooDeep = math.MaxInt64 >> 20

func diskUsage(dir int, name string, depth int) int64 {
	if depth > maxDepth {
		return tooDeep
	}
	fd, err := harvest.OpenDir(dir, name)
	if err != nil {
		return perEntry // gone meanwhile
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var sum int64
	for {
		names, err := f.Readdirnames(1024)
		for _, n := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			sum += perEntry + st.Blocks*512/int64(max(1, st.Nlink))
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				sum = min(sum+diskUsage(fd, n, depth+1), tooDeep)
			}
		}
		if err != nil {
			return sum
		}
	}
}
