//go:build linux

// Package docker runs sandboxes in containers of an engine on this machine:
// Docker, or another that speaks its API, such as Podman. Workspaces are folders
// of the host, so files, harvests, forks and limits on disk are those of
// sandbox/local; an engine on another machine cannot be used. Each live sandbox
// has one container, made by its first command, with our first process in it.
package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ssr-go/ssr/sandbox"
	"github.com/ssr-go/ssr/sandbox/harvest"
	"github.com/ssr-go/ssr/sandbox/local"
	"github.com/ssr-go/ssr/sandbox/pid1"
)

// Options configure the backend. Image is needed, the rest may be zero.
type Options struct {
	// Image that commands see, read-only. It must be there: nothing is pulled. It
	// needs bash for shells, and whatever the repository's tests need.
	Image string
	// Host is the engine's socket, by default DOCKER_HOST or the usual places.
	Host string
	// Runtime is the engine's OCI runtime; "" is its default, "runsc" is gVisor.
	Runtime string
	// CPUs that one sandbox may use at once; 0 sets no limit.
	CPUs float64
	// Allow lists protections that may be missing: those of local.Options,
	// "memory", "processes" and "first process", which gVisor does not give.
	Allow []string
	// As in local.Options.
	StateDir       string
	FirstUID, UIDs int
	ReadOnly       []string
	Bounds         harvest.Bounds
}

// New prepares the state folder. It does not speak with the engine yet, which
// may be restarted at any time; Probe says whether sandboxes can run.
func New(o Options) (*local.Backend, error) {
	if o.Image == "" {
		return nil, errors.New("docker: no image is given (sandbox.image, --image)")
	}
	socket, err := findSocket(o.Host)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", sandbox.ErrInfrastructure, err)
	}
	if gvisor(o.Runtime) && !slices.Contains(o.Allow, firstProcess) {
		return nil, fmt.Errorf("docker: runtime %s: a command can kill the sandbox's first process and write what it says of the command's end; such a sandbox is started only where the configuration allows the protection %q to be missing", o.Runtime, firstProcess)
	}
	protections := slices.DeleteFunc(slices.Clone(o.Allow), func(p string) bool { return slices.Contains(ownProtections, p) })
	e := &engine{opts: o, socket: socket, busy: make(chan struct{}, 4*runtime.NumCPU())}
	return local.New(local.Options{
		StateDir: o.StateDir, FirstUID: o.FirstUID, UIDs: o.UIDs, ReadOnly: o.ReadOnly, Allow: protections, Bounds: o.Bounds, Engine: e,
	})
}

// firstProcess is the protection of our first process from what it runs, which has its
// uid: Linux lets nobody open the files of a process that is not dumpable, nor kill the
// first of a pid namespace from inside; gVisor allows both.
const firstProcess = "first process"

// ownProtections are those that this package looks after, beside local's.
var ownProtections = []string{"memory", "processes", firstProcess}

// engine implements local.Engine.
type engine struct {
	opts     Options
	socket   string
	busy     chan struct{} // bounds how many containers are made, or removed later, at once
	removals sync.WaitGroup

	mu     sync.Mutex
	client *client // nil until the engine has answered
}

// callTimeout bounds one exchange with the engine.
const callTimeout = 60 * time.Second

// Name implements local.Engine.
func (e *engine) Name() string { return "docker" }

// Close implements local.Engine.
func (e *engine) Close() error {
	e.removals.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil {
		e.client.http.CloseIdleConnections()
	}
	return nil
}

// later removes a container in which nothing is alive any more: nobody waits for it but Close.
func (e *engine) later(remove func()) {
	e.removals.Go(func() {
		e.busy <- struct{}{}
		defer func() { <-e.busy }()
		remove()
	})
}

func (e *engine) connect(ctx context.Context) (*client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client == nil {
		c, err := dialEngine(ctx, e.socket)
		if err != nil {
			return nil, err
		}
		e.client = c
	}
	return e.client, nil
}

// Labels of our containers.
const (
	labelState    = "io.github.ssr-go.state" // the state folder
	labelSlot     = "io.github.ssr-go.slot"  // the sandbox's number in it
	labelOwner    = "io.github.ssr-go.owner"
	labelDeadline = "io.github.ssr-go.deadline" // after which nobody can want it, RFC 3339
)

// grace is how long a container may outlive its sandbox's lifetime.
const grace = 10 * time.Minute

// hostConfig is the part of the API's HostConfig that is used.
type hostConfig struct {
	NetworkMode    string
	ReadonlyRootfs bool
	CapDrop        []string
	SecurityOpt    []string
	Memory         int64
	MemorySwap     int64
	PidsLimit      int64
	NanoCpus       int64   `json:",omitempty"`
	Mounts         []mount `json:",omitempty"`
	ShmSize        int64   `json:",omitempty"`
	IpcMode        string  `json:",omitempty"`
	CgroupnsMode   string  `json:",omitempty"`
	UsernsMode     string  `json:",omitempty"`
	Runtime        string  `json:",omitempty"`
	OomScoreAdj    int     `json:",omitempty"`
	Ulimits        []ulimit
	MaskedPaths    []string `json:",omitempty"`
	ReadonlyPaths  []string `json:",omitempty"`
	LogConfig      struct{ Type string }
	Privileged     bool
	Init           bool // false: our own process must be the first
}

// ulimit is an rlimit of the first process, which lowers it for each command.
type ulimit struct {
	Name       string
	Soft, Hard int64
}

type mount struct {
	Type, Source, Target string
	ReadOnly             bool
	BindOptions          struct{ Propagation string }
}

func bind(source, target string, readOnly bool) mount {
	return mount{"bind", source, target, readOnly, struct{ Propagation string }{"rprivate"}}
}

func equal(name string, n int) ulimit { return ulimit{name, int64(n), int64(n)} }

// containerConfig is the body of a create request, as far as it is used.
type containerConfig struct {
	Image, User, Hostname, WorkingDir       string
	StopSignal                              string
	Entrypoint, Cmd                         []string
	OpenStdin, StdinOnce                    bool
	AttachStdin, AttachStdout, AttachStderr bool
	Labels                                  map[string]string
	HostConfig                              hostConfig
}

// gvisor reports whether an OCI runtime has a kernel of its own, in which case
// the processes inside are none of this machine's.
func gvisor(runtime string) bool { return strings.HasPrefix(runtime, "runsc") }

// gvisorThreads is what gVisor itself needs of a container's limit on processes;
// inside, RLIMIT_NPROC bounds the command.
const gvisorThreads = 4096

// overhead is our first process, and what the engine needs to start it.
const overhead = 8

// setupFiles is what an OCI runtime may have open while it sets a container up, for which
// crun has the container's own limit already.
const setupFiles = 1024

// create describes the container of a cell.
func (e *engine) create(s local.CellSpec, c *client) (containerConfig, error) {
	dir, err := writeFiles(s)
	if err != nil {
		return containerConfig{}, err
	}
	h := hostConfig{
		NetworkMode: "none", ReadonlyRootfs: true, CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"},
		Memory: s.Limits.Memory, MemorySwap: s.Limits.Memory, PidsLimit: int64(s.Limits.Processes + overhead),
		NanoCpus: int64(e.opts.CPUs * 1e9), ShmSize: 64 << 20, IpcMode: "private", CgroupnsMode: "private",
		// An engine's own may be higher than its host lets it set.
		Ulimits: []ulimit{equal("nofile", max(s.Limits.OpenFiles, setupFiles)), equal("nproc", s.Limits.Processes+overhead)},
		Runtime: e.opts.Runtime, OomScoreAdj: 500, LogConfig: struct{ Type string }{"none"},
		// The engine's own lists, with all of /sys.
		MaskedPaths:   []string{"/sys", "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/interrupts", "/proc/kallsyms"},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		Mounts: []mount{
			bind(filepath.Join(dir, "pid1"), pid1.ProgramPath, true),
			bind(filepath.Join(dir, "passwd"), "/etc/passwd", true),
			bind(filepath.Join(dir, "group"), "/etc/group", true),
			bind(filepath.Join(dir, "hosts"), "/etc/hosts", true), // Podman's has the machine's name
			bind(s.Workspace, sandbox.Workdir, false),
			bind(s.Tmp, "/tmp", false),
		},
	}
	if gvisor(e.opts.Runtime) {
		h.PidsLimit += gvisorThreads
	}
	if c.podman {
		// It passes over MaskedPaths, and gives a read-only root two folders that are not.
		h.SecurityOpt = append(h.SecurityOpt, "mask="+strings.Join(h.MaskedPaths, ":"))
		empty := filepath.Join(dir, "empty")
		h.Mounts = append(h.Mounts, bind(empty, "/run", true), bind(empty, "/var/tmp", true))
	}
	if c.rootless {
		h.UsernsMode = "keep-id" // or the workspace would be another's
	}
	for _, path := range s.ReadOnly {
		h.Mounts = append(h.Mounts, bind(path, path, true))
	}
	return containerConfig{
		Image: e.opts.Image, User: fmt.Sprintf("%d:%d", s.UID, s.GID), Hostname: "sandbox", WorkingDir: "/", StopSignal: "SIGKILL",
		Entrypoint: []string{pid1.ProgramPath}, Cmd: []string{pid1.StreamArgument},
		OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
		Labels: map[string]string{
			labelState: s.State, labelSlot: strconv.Itoa(s.Slot), labelOwner: s.Owner,
			labelDeadline: time.Now().Add(s.Limits.Lifetime + grace).UTC().Format(time.RFC3339),
		},
		HostConfig: h,
	}, nil
}

// writeFiles writes what a container gets beside the image, once for each
// sandbox: its user has a number of its own.
func writeFiles(s local.CellSpec) (string, error) {
	dir := filepath.Join(s.Dir, "container")
	if err := os.Mkdir(dir, 0o755); errors.Is(err, os.ErrExist) {
		return dir, nil
	} else if err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		return "", err
	}
	for _, f := range []struct {
		name, text string
		mode       os.FileMode
	}{
		{"pid1", string(pid1.Program()), 0o755},
		{"passwd", fmt.Sprintf("root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:%d:%d:agent:%s:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n", s.UID, s.GID, sandbox.HomeDir), 0o644},
		{"hosts", "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n", 0o644},
		{"group", fmt.Sprintf("root:x:0:\nagent:x:%d:\nnogroup:x:65534:\n", s.GID), 0o644},
	} {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, []byte(f.text), f.mode); err != nil {
			return "", err
		}
		if err := os.Chmod(path, f.mode); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// Capabilities implements local.Engine. What a container has got is checked
// again when it has been made.
func (e *engine) Capabilities(ctx context.Context) (sandbox.Capabilities, error) {
	var caps sandbox.Capabilities
	c, err := e.connect(ctx)
	if err != nil {
		return caps, fmt.Errorf("%w: %w", sandbox.ErrInfrastructure, err)
	}
	var info struct {
		MemoryLimit, SwapLimit, PidsLimit             bool
		Rootless                                      bool // Podman's word for it
		SecurityOptions                               []string
		ServerVersion, OperatingSystem, CgroupVersion string
		Runtimes                                      map[string]any
	}
	if err := c.call(ctx, http.MethodGet, "/info", nil, nil, &info); err != nil {
		return caps, fmt.Errorf("%w: %w", sandbox.ErrInfrastructure, err)
	}
	if _, ok := info.Runtimes[e.opts.Runtime]; e.opts.Runtime != "" && !ok {
		return caps, fmt.Errorf("%w: the engine has no runtime %q; add it to its configuration", sandbox.ErrInfrastructure, e.opts.Runtime)
	}
	caps.Enforced = map[string]string{
		"filesystem":   "container: mount namespace, read-only image, private workspace and /tmp",
		"network":      "network namespace with its own loopback, and seccomp against other families",
		"processes":    "container's pids limit",
		"user":         "the sandbox's own uid of the host, without capabilities or new privileges; no user namespace unless the engine remaps users",
		"memory":       "container's memory limit",
		"process tree": "the first process kills and reaps after each command; it ends when the trainer closes its stream",
		"syscalls":     "our seccomp filter over the engine's",
		firstProcess:   "not dumpable, and the first of its pid namespace",
	}
	if gvisor(e.opts.Runtime) {
		caps.Enforced[firstProcess] = ""
		caps.Notes = append(caps.Notes, "first process: gVisor lets a command write to its streams and kill it, so what is said of a command's end may be forged")
	}
	if !slices.ContainsFunc(info.SecurityOptions, func(s string) bool { return strings.HasPrefix(s, "name=seccomp") }) {
		caps.Enforced["syscalls"] = "our seccomp filter; the engine has none"
	}
	if !c.podman && slices.Contains(info.SecurityOptions, "name=rootless") { // Podman 5 has the word too
		return caps, fmt.Errorf("%w: a rootless Docker cannot run sandboxes as the users that workspaces belong to; a rootless Podman can", sandbox.ErrInfrastructure)
	}
	if info.Rootless {
		caps.Enforced["user"] = "the trainer's own uid, without capabilities or new privileges, in the engine's user namespace"
	}
	// What a rootless engine says there is of version 1 it may not use.
	unusable := info.Rootless && info.CgroupVersion == "1"
	for _, p := range []struct {
		name string
		has  bool
	}{{"memory", info.MemoryLimit}, {"processes", info.PidsLimit}} {
		if !p.has || unusable {
			caps.Enforced[p.name] = ""
			caps.Notes = append(caps.Notes, p.name+": the engine's host has no such control group, or a rootless engine may not use it (version 1)")
		}
	}
	for _, p := range []string{"memory", "processes"} {
		if caps.Enforced[p] == "" && !slices.Contains(e.opts.Allow, p) {
			return caps, fmt.Errorf("%w: the engine cannot limit %s on this host, and the configuration does not allow it to be missing", sandbox.ErrInfrastructure, p)
		}
	}
	if !info.SwapLimit {
		caps.Notes = append(caps.Notes, "the engine cannot limit swap: memory beyond the limit may be swapped where the host has swap")
	}
	caps.Notes = append(caps.Notes, fmt.Sprintf("engine %s on %s, API %s, runtimes %s", info.ServerVersion, info.OperatingSystem, c.version, strings.Join(slices.Sorted(maps.Keys(info.Runtimes)), ", ")))
	return caps, nil
}

// Look asks an engine what it could enforce, without an image and without
// starting anything.
func Look(ctx context.Context, host string) (sandbox.Capabilities, error) {
	socket, err := findSocket(host)
	if err != nil {
		return sandbox.Capabilities{}, err
	}
	e := &engine{socket: socket}
	defer e.Close()
	return e.Capabilities(ctx)
}

// ImageSize asks an engine how many bytes an image takes, all its layers together.
func ImageSize(ctx context.Context, host, image string) (int64, error) {
	socket, err := findSocket(host)
	if err != nil {
		return 0, err
	}
	e := &engine{socket: socket}
	defer e.Close()
	c, err := e.connect(ctx)
	if err != nil {
		return 0, err
	}
	var answer struct{ Size int64 }
	if err := c.call(ctx, http.MethodGet, "/images/"+image+"/json", nil, nil, &answer); err != nil {
		if hasStatus(err, http.StatusNotFound) {
			err = fmt.Errorf("%w: %w", ErrNoImage, err)
		}
		return 0, fmt.Errorf("size of image %s: %w", image, err)
	}
	return answer.Size, nil
}

// Sweep implements local.Engine.
func (e *engine) Sweep(ctx context.Context, state string, alive func(slot int) bool) error {
	c, err := e.connect(ctx)
	if err != nil {
		return err
	}
	filters, err := json.Marshal(map[string][]string{"label": {labelState + "=" + state}})
	if err != nil {
		return err
	}
	var list []struct {
		ID     string `json:"Id"`
		Labels map[string]string
	}
	if err := c.call(ctx, http.MethodGet, "/containers/json", url.Values{"all": {"1"}, "filters": {string(filters)}}, nil, &list); err != nil {
		return err
	}
	for _, x := range list {
		slot, err := strconv.Atoi(x.Labels[labelSlot])
		deadline, terr := time.Parse(time.RFC3339, x.Labels[labelDeadline])
		if err == nil && terr == nil && alive(slot) && time.Now().Before(deadline) {
			continue
		}
		if err := c.remove(ctx, x.ID); err != nil {
			return err
		}
	}
	return nil
}

// remove kills and removes a container; one that is gone or going is no error.
func (c *client) remove(ctx context.Context, id string) error {
	for attempt := 1; ; attempt++ {
		err := c.call(ctx, http.MethodDelete, "/containers/"+id, url.Values{"force": {"1"}, "v": {"1"}}, nil, nil)
		switch {
		case hasStatus(err, http.StatusNotFound), hasStatus(err, http.StatusConflict):
			return nil
		case !hasStatus(err, http.StatusInternalServerError), attempt == removeAttempts:
			return err
		}
		// Podman fails where the processes that it is about to kill die by themselves.
		time.Sleep(removePause)
	}
}

// An engine that fails to remove is asked so often, with a pause between.
const (
	removeAttempts = 5
	removePause    = 200 * time.Millisecond
)
