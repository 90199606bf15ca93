// Package rpc calls functions of another process of the same program: gob over HTTP,
// for those who know a secret. A call's context ends with the caller's, and a caller
// whose peer dies has an error at once.
package rpc

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// Server answers calls. It is made by Listen and must be closed.
type Server struct {
	mux    *http.ServeMux
	server *http.Server
	listen net.Listener
	calls  sync.WaitGroup // and the loop that takes them
}

// NewSecret is one that nobody guesses.
func NewSecret() string { return rand.Text() }

// Listen serves on a free port of a host of this machine. Handle comes before Start.
func Listen(host, secret string) (*Server, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	s := &Server{mux: http.NewServeMux(), listen: l}
	s.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		defer s.calls.Done()
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(secret)) != 1 {
			http.Error(w, "wrong secret", http.StatusForbidden)
			return
		}
		s.mux.ServeHTTP(w, r)
	})}
	return s, nil
}

// Addr is where calls go.
func (s *Server) Addr() string { return s.listen.Addr().String() }

// Start begins to answer.
func (s *Server) Start() {
	s.calls.Go(func() { s.server.Serve(s.listen) }) // ends by Close alone
}

// Finish waits until all calls under way have been answered, or for ctx to end; the
// caller closes the server then.
func (s *Server) Finish(ctx context.Context) error { return s.server.Shutdown(ctx) }

// Close ends the contexts of the calls under way and waits for them.
func (s *Server) Close() {
	s.server.Close()
	s.calls.Wait()
}

// ErrLost is wrapped by the errors of a connection, as opposed to those of a function.
var ErrLost = errors.New("no answer")

// reply is an answer, or why there is none.
type reply[Out any] struct {
	Out Out
	Err string
}

// Handle answers calls of name by f. In and Out are what gob can carry.
func Handle[In, Out any](s *Server, name string, f func(ctx context.Context, in In) (Out, error)) {
	s.mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := gob.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		io.Copy(io.Discard, r.Body) // the context ends with the connection only after this
		var answer reply[Out]
		var err error
		if answer.Out, err = f(r.Context(), in); err != nil {
			answer.Err = err.Error()
		}
		gob.NewEncoder(w).Encode(answer) // a caller who is gone sees no reply
	})
}

// HandleStream answers Open of name by what f writes.
func HandleStream(s *Server, name string, f func(w io.Writer) error) {
	s.mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
		if err := f(w); err != nil {
			panic(http.ErrAbortHandler) // the reader finds the stream cut short
		}
	})
}

// Client calls one server.
type Client struct {
	addr, secret string
	http         http.Client
}

// Dial returns a client of the server at an address; it connects when it is used.
func Dial(addr, secret string) *Client {
	return &Client{addr: addr, secret: secret, http: http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64, DisableCompression: true, DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
	}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Call calls name on the server. The error is the function's own, as text, or that of
// the connection.
func Call[Out, In any](ctx context.Context, c *Client, name string, in In) (out Out, err error) {
	var body bytes.Buffer
	if err := gob.NewEncoder(&body).Encode(in); err != nil {
		return out, fmt.Errorf("%s: %w", name, err)
	}
	response, err := c.do(ctx, http.MethodPost, name, &body)
	if err != nil {
		return out, err
	}
	defer response.Body.Close()
	var answer reply[Out]
	if err := gob.NewDecoder(response.Body).Decode(&answer); err != nil {
		return out, c.failed(ctx, name, err)
	}
	if answer.Err != "" {
		return out, errors.New(answer.Err)
	}
	return answer.Out, nil
}

// Open reads a stream of the server; the caller closes it.
func (c *Client) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	response, err := c.do(ctx, http.MethodGet, name, nil)
	if err != nil {
		return nil, err
	}
	return response.Body, nil
}

func (c *Client) do(ctx context.Context, method, name string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+c.addr+"/"+name, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", c.secret)
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.failed(ctx, name, err)
	}
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		response.Body.Close()
		return nil, fmt.Errorf("%s at %s: %s: %s", name, c.addr, response.Status, bytes.TrimSpace(text))
	}
	return response, nil
}

func (c *Client) failed(ctx context.Context, name string, err error) error {
	var outer *url.Error // says again where the call went
	if errors.As(err, &outer) {
		err = outer.Err
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("%s at %s: %w: %w", name, c.addr, ErrLost, err)
}
