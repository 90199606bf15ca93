//go:build linux

package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What can go wrong on the engine's side. Each is wrapped in
// sandbox.ErrInfrastructure by the time a caller sees it.
var (
	ErrNoDaemon = errors.New("the container engine does not answer")
	ErrNoImage  = errors.New("the image is not there")
	ErrHung     = errors.New("the container engine hangs")
	ErrDiskFull = errors.New("the container engine's disk is full")
	ErrLost     = errors.New("the container is gone")
)

// Versions of the Engine API between which requests are the same for what is
// used here: 1.41 is Docker 20.10.
const oldest, newest = 41, 51

// client speaks the Engine API over a unix socket.
type client struct {
	socket  string
	http    http.Client
	version string // "v1.41"
	podman  bool
	// rootless: Podman's service is an ordinary user's.
	rootless bool
}

// findSocket picks the engine's socket: what is given, DOCKER_HOST, or the first
// that is there of Docker's and Podman's usual places.
func findSocket(host string) (string, error) {
	if host == "" {
		host = os.Getenv("DOCKER_HOST")
	}
	if host != "" {
		path, ok := strings.CutPrefix(host, "unix://")
		if !ok && strings.Contains(host, "://") {
			return "", fmt.Errorf("engine %q: only unix sockets: workspaces are folders of this machine", host)
		}
		return path, nil
	}
	places := []string{"/var/run/docker.sock", "/run/podman/podman.sock"}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		places = append(places, filepath.Join(dir, "docker.sock"), filepath.Join(dir, "podman/podman.sock"))
	}
	for _, path := range places {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: no socket at %s: start dockerd or podman's service, or set DOCKER_HOST", ErrNoDaemon, strings.Join(places, ", "))
}

// dialEngine connects and agrees on a version.
func dialEngine(ctx context.Context, socket string) (*client, error) {
	c := &client{socket: socket, version: "v1." + strconv.Itoa(oldest)}
	c.http.Transport = &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     time.Minute,
	}
	r, err := c.send(ctx, http.MethodGet, "http://engine/_ping", nil)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	r.Body.Close()
	spoken := r.Header.Get("Api-Version")
	minor, err := strconv.Atoi(strings.TrimPrefix(spoken, "1."))
	if err != nil || minor < oldest {
		return nil, fmt.Errorf("the engine at %s speaks API %q; 1.%d (Docker 20.10) or later is needed", socket, spoken, oldest)
	}
	c.version = "v1." + strconv.Itoa(min(minor, newest))
	if c.podman = r.Header.Get("Libpod-Api-Version") != ""; c.podman {
		// Its own word for it is in an answer that takes package managers to make.
		uid, err := c.owner(ctx)
		if err != nil {
			return nil, c.explain(ctx, err)
		}
		c.rootless = uid != 0
	}
	return c, nil
}

func (c *client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", c.socket)
}

// owner is the user of the process that listens.
func (c *client) owner(ctx context.Context) (uid int, err error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return int(peer.Uid), nil
}

func (c *client) send(ctx context.Context, method, address string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	return c.http.Do(r)
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 16 << 20

// call sends a request with a JSON body, where in is not nil, and reads a JSON
// answer into out, where that is not nil. An answer other than 2xx or 304 (it is
// so already) is a *statusError.
func (c *client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	r, err := c.send(ctx, method, "http://engine/"+c.version+path+"?"+query.Encode(), in)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer r.Body.Close()
	data, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err != nil {
		return c.explain(ctx, err)
	}
	if err := check(r.StatusCode, data); err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s %s: the engine's answer: %w", method, path, err)
	}
	return nil
}

// statusError is an answer that is an error.
type statusError struct {
	code    int
	message string
}

func (e *statusError) Error() string { return fmt.Sprintf("engine: %s (%d)", e.message, e.code) }

func check(code int, body []byte) error {
	if code >= 200 && code < 300 || code == http.StatusNotModified {
		return nil
	}
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &said) != nil || said.Message == "" {
		said.Message = http.StatusText(code)
	}
	err := &statusError{code, said.Message}
	if strings.Contains(said.Message, "no space left on device") || strings.Contains(said.Message, "disk quota exceeded") {
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	}
	return err
}

func hasStatus(err error, code int) bool {
	var s *statusError
	return errors.As(err, &s) && s.code == code
}

// explain names what a failed exchange means.
func (c *client) explain(ctx context.Context, err error) error {
	var timeout net.Error
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%w: no answer from %s in time", ErrHung, c.socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: %s may not be opened: run as root, or add this user to the group docker", ErrNoDaemon, c.socket)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%w at %s: %w", ErrNoDaemon, c.socket, err)
	}
	return err
}

// attach opens the streams of a container. What is read of it is in frames; see demultiplex.
func (c *client) attach(ctx context.Context, id string) (*hijacked, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	h := &hijacked{Conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	fail := func(err error) (*hijacked, error) {
		stop()
		conn.Close()
		return nil, err
	}
	q := url.Values{"stream": {"1"}, "stdin": {"1"}, "stdout": {"1"}, "stderr": {"1"}}
	_, err = fmt.Fprintf(conn, "POST /%s/containers/%s/attach?%s HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n", c.version, id, q.Encode())
	if err != nil {
		return fail(c.explain(ctx, err))
	}
	r, err := http.ReadResponse(h.r, nil)
	if err != nil {
		return fail(c.explain(ctx, err))
	}
	// 101 where the engine upgrades, 200 from older ones and proxies.
	if r.StatusCode != http.StatusSwitchingProtocols && r.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10))
		return fail(check(r.StatusCode, data))
	}
	if !stop() {
		return fail(ctx.Err())
	}
	return h, nil
}

// hijacked is a connection that carries a container's streams.
type hijacked struct {
	net.Conn
	r *bufio.Reader
	// left of the frame that is being read, and the beginning of what the container
	// printed on stderr.
	left   uint32
	stderr []byte
}

// maxComplaint is how much of stderr is kept.
const maxComplaint = 2000

// Read reads stdout. Frames are a byte that names the stream, three zeros, the
// length of the rest in four bytes, most significant first, and the rest.
func (h *hijacked) Read(p []byte) (int, error) {
	for h.left == 0 {
		var head [8]byte
		if _, err := io.ReadFull(h.r, head[:]); err != nil {
			return 0, err
		}
		n := uint32(head[4])<<24 | uint32(head[5])<<16 | uint32(head[6])<<8 | uint32(head[7])
		switch head[0] {
		case 1:
			h.left = n
		case 2:
			text, err := io.ReadAll(io.LimitReader(h.r, int64(n)))
			h.stderr = append(h.stderr, text[:min(len(text), maxComplaint-len(h.stderr))]...)
			if err != nil || uint32(len(text)) < n {
				return 0, io.ErrUnexpectedEOF
			}
		default:
			return 0, fmt.Errorf("stream %d of a container", head[0])
		}
	}
	n, err := h.r.Read(p[:min(len(p), int(h.left))])
	h.left -= uint32(n)
	return n, err
}
