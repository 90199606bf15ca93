//go:build linux

package docker

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ssr-go/ssr/sandbox/local"
)

// fakeEngine answers the part of the Engine API that the backend uses, as its
// reference (API 1.41) describes it, from a unix socket. Its containers run
// nothing: a goroutine plays the first process.
type fakeEngine struct {
	t      testing.TB
	socket string
	server *http.Server

	mu         sync.Mutex
	containers map[string]*fakeContainer
	made       int
	// fault, when set, is asked before a request is answered; true says that it
	// has dealt with it.
	fault func(w http.ResponseWriter, r *http.Request) bool
	// noLimits plays a host without control groups: limits are dropped.
	noLimits bool
	// mute containers never say that they are ready; deaf ones do not obey Kill.
	mute, deaf bool
	// pid of every first process; 0 plays a runtime with a kernel of its own.
	pid int
	// podman says that it is Podman; info goes over what it says of itself.
	podman bool
	info   map[string]any
}

type fakeContainer struct {
	config  containerConfig
	conn    net.Conn
	running bool
	oom     bool
	exit    int
	removed bool
}

func newFakeEngine(t testing.TB) *fakeEngine {
	f := &fakeEngine{t: t, containers: map[string]*fakeContainer{}, socket: filepath.Join(t.TempDir(), "engine.sock")}
	f.listen()
	t.Cleanup(f.stop)
	return f
}

func (f *fakeEngine) listen() {
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		f.t.Fatal(err)
	}
	f.server = &http.Server{Handler: f}
	go f.server.Serve(l)
}

// stop ends the engine as a crash does: connections break, containers end.
func (f *fakeEngine) stop() {
	f.server.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		c.end()
	}
}

func (c *fakeContainer) end() {
	c.running = false
	if c.conn != nil {
		c.conn.Close()
	}
}

// left counts containers that were not removed.
func (f *fakeEngine) left() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if !c.removed {
			n++
		}
	}
	return n
}

func say(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if v != nil {
		json.NewEncoder(w).Encode(v)
	}
}

type message struct {
	Message string `json:"message"`
}

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	fault := f.fault
	f.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	if r.URL.Path == "/_ping" {
		w.Header().Set("Api-Version", "1.41")
		if f.podman {
			w.Header().Set("Libpod-Api-Version", "4.3.1")
		}
		io.WriteString(w, "OK")
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v1.41")
	if !ok {
		say(w, http.StatusBadRequest, message{"client version is not supported"})
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	part := strings.Split(strings.TrimPrefix(path, "/containers/"), "/")
	c := f.containers[part[0]]
	switch key := r.Method + " " + path; {
	case key == "GET /info":
		info := map[string]any{
			"MemoryLimit": !f.noLimits, "PidsLimit": !f.noLimits, "SwapLimit": true, "SecurityOptions": []string{"name=seccomp,profile=default"},
			"Runtimes": map[string]any{"runc": 1, "runsc": 1}, "ServerVersion": "fake",
		}
		maps.Copy(info, f.info)
		say(w, 200, info)
	case key == "GET /images/registry.test:5000/group/image:v1/json":
		say(w, 200, map[string]any{"Id": "sha256:0", "Size": 123_456_789})
	case strings.HasPrefix(key, "GET /images/"):
		say(w, 404, message{"No such image"})
	case key == "POST /containers/create":
		f.create(w, r)
	case key == "GET /containers/json":
		f.list(w, r)
	case c == nil || c.removed:
		say(w, 404, message{"No such container: " + part[0]})
	case r.Method == "DELETE":
		c.end()
		c.removed = true
		w.WriteHeader(204)
	case part[1] == "json":
		h := c.config.HostConfig
		if f.noLimits {
			h.Memory, h.PidsLimit = 0, 0
		}
		x := map[string]any{"HostConfig": h, "State": map[string]any{"Running": c.running, "OOMKilled": c.oom, "Pid": f.pid, "ExitCode": c.exit}}
		say(w, 200, x)
	case part[1] == "attach":
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			f.t.Error(err)
			return
		}
		io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		c.conn = conn
	case part[1] == "start" && c.running:
		w.WriteHeader(304)
	case part[1] == "start":
		c.running = true
		w.WriteHeader(204)
		if !f.mute {
			go f.firstProcess(c)
		}
	default:
		f.t.Errorf("unexpected request %s", key)
		w.WriteHeader(500)
	}
}

func (f *fakeEngine) create(w http.ResponseWriter, r *http.Request) {
	var c containerConfig
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		say(w, 400, message{err.Error()})
		return
	}
	if c.Image != "image" {
		say(w, 404, message{"No such image: " + c.Image})
		return
	}
	f.made++
	id := fmt.Sprintf("%064x", f.made)
	f.containers[id] = &fakeContainer{config: c}
	say(w, 201, map[string]any{"Id": id, "Warnings": []string{}})
}

func (f *fakeEngine) list(w http.ResponseWriter, r *http.Request) {
	var filters struct{ Label []string }
	if err := json.Unmarshal([]byte(r.URL.Query().Get("filters")), &filters); err != nil || r.URL.Query().Get("all") != "1" {
		say(w, 400, message{"filters"})
		return
	}
	list := []map[string]any{}
	for id, c := range f.containers {
		match := !c.removed
		for _, l := range filters.Label {
			k, v, _ := strings.Cut(l, "=")
			match = match && c.config.Labels[k] == v
		}
		if match {
			list = append(list, map[string]any{"Id": id, "Labels": c.config.Labels})
		}
	}
	say(w, 200, list)
}

// frame sends a frame of the first process inside one of the container's stdout.
func frame(w io.Writer, kind byte, data []byte) {
	inner := append(binary.LittleEndian.AppendUint32([]byte{kind}, uint32(len(data))), data...)
	head := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[4:], uint32(len(inner)))
	w.Write(append(head, inner...))
}

// firstProcess answers "echo TEXT", "cat", "exit N", "wait" (which only Kill ends)
// "oom", which ends the container for want of memory, and "kill", which kills its first process.
func (f *fakeEngine) firstProcess(c *fakeContainer) {
	in := bufio.NewReader(c.conn)
	frame(c.conn, 'H', nil)
	status := func(s uint32) {
		b := make([]byte, 32)
		binary.NativeEndian.PutUint32(b, s)
		frame(c.conn, 'S', b)
	}
	cat := false
	for {
		var head [5]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		data := make([]byte, binary.LittleEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(in, data); err != nil {
			return
		}
		switch head[0] {
		case 'K':
			if !f.deaf {
				status(9)
			}
		case 'I':
			frame(c.conn, 'A', nil)
			if cat {
				frame(c.conn, 'O', data)
			}
		case 'E':
			if cat {
				cat = false
				status(0)
			}
		case 'R':
			nlimits, argc, envc := binary.NativeEndian.Uint64(data), binary.NativeEndian.Uint64(data[8:]), binary.NativeEndian.Uint64(data[16:])
			if f.pid == 0 && slices.ContainsFunc(resources(data[24:], nlimits), refusedByGVisor) {
				status(126 << 8)
				continue
			}
			words := strings.Split(string(data[24+24*nlimits+8*(argc+envc+2):]), "\x00")
			switch args := words[1 : 1+argc]; args[0] {
			case "true":
				status(0)
			case "echo":
				frame(c.conn, 'O', []byte(args[1]))
				frame(c.conn, 'e', []byte("warning"))
				status(0)
			case "exit":
				status(uint32(args[1][0]-'0') << 8)
			case "cat":
				cat = true
			case "oom", "kill":
				f.mu.Lock()
				c.oom, c.exit = args[0] == "oom", 137
				c.end()
				f.mu.Unlock()
				return
			}
		}
	}
}

// resources are the numbers of a request's limits.
func resources(data []byte, n uint64) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = int(binary.NativeEndian.Uint64(data[24*i:]))
	}
	return list
}

// refusedByGVisor: its sentry fails with EPERM for every resource but these
// (setableLimits in pkg/sentry/syscalls/linux/sys_rlimit.go).
func refusedByGVisor(resource int) bool {
	return !slices.Contains([]int{
		unix.RLIMIT_NOFILE, unix.RLIMIT_AS, unix.RLIMIT_CPU, unix.RLIMIT_DATA, unix.RLIMIT_FSIZE,
		unix.RLIMIT_MEMLOCK, unix.RLIMIT_STACK, unix.RLIMIT_CORE, unix.RLIMIT_NPROC,
	}, resource)
}

func newFake(t testing.TB, f *fakeEngine, o Options) *local.Backend {
	t.Helper()
	if o.Image == "" {
		o.Image = "image"
	}
	if o.Runtime == "" {
		o.Runtime = "runsc" // whose processes are none of the host's, so none is looked for
	}
	o.Allow = append(o.Allow, firstProcess)
	o.Host, o.StateDir = "unix://"+f.socket, stateDir(t)
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}
