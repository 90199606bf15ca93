// Package serve answers OpenAI's API from a policy: chat completions,
// completions and the list of models, under /v1, so that an agent or an
// evaluation harness that speaks it can talk to the policy. See
// https://platform.openai.com/docs/api-reference/chat and …/completions.
//
// What a request asks for and the policy cannot do is refused with status 400,
// never left out silently. Log-probabilities are natural logs under the policy's
// own distribution (temperature 1, nothing truncated).
package serve

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/ssr-go/ssr/model/gen"
)

// Generator continues token histories, several at a time. A completion must be
// a function of the request (and the policy's version) alone, as those of
// model/engine are: an answer that is streamed is asked for piece by piece.
type Generator interface {
	// Generate returns what was sampled so far with gen.FinishCancelled when ctx ends first.
	Generate(ctx context.Context, req gen.Request) (gen.Completion, error)
	// Release forgets what is kept for a request's ID.
	Release(id string)
}

// Tokenizer turns text into ids and back.
type Tokenizer interface {
	// EncodeSpecial reads special tokens that the text spells as such.
	EncodeSpecial(text string) []int32
	// AppendDecode appends the bytes that ids stand for.
	AppendDecode(dst []byte, ids ...int32) []byte
	// VocabSize is one more than the largest id.
	VocabSize() int
}

// Chat turns conversations into tokens and turns into messages.
type Chat interface {
	// Prompt frames the messages and opens the assistant's turn, in which tools
	// may be called. Its errors are told to the client.
	Prompt(messages []Message, tools []Tool) ([]int32, error)
	// StopTokens end a turn.
	StopTokens() []int32
	// CallEnds are strings that end a turn in which tools are offered. They are
	// part of it.
	CallEnds() []string
	// Parse separates the calls in a turn from what else it says.
	Parse(turn string, tools []Tool) (content string, calls []FunctionCall)
}

// Options describe the served policy and bound the requests.
type Options struct {
	// Name is the model's name in the API.
	Name string
	// Context is the most tokens of a history, prompt and answer together (> 0).
	Context int
	// StopTokens end a completion that is not a chat.
	StopTokens []int32
	// Chat frames conversations; without one they are refused.
	Chat Chat
	// Score gives the natural log of the probability of each token after those before
	// it, anything for the first; without it, prompts that are echoed have none.
	Score func(ctx context.Context, tokens []int32) ([]float64, error)
	// Deadline of a request, from its arrival; default 10 minutes.
	Deadline time.Duration
	// BodyBytes bounds a request's body; default 8 MiB.
	BodyBytes int64
	// Grace is how long requests in progress may go on when the server is told to
	// end; default 10 seconds.
	Grace time.Duration
}

const (
	// streamTokens are asked for at a time when an answer is streamed: few, so that
	// the reader sees it grow; not one, since a sequence may sit out a step of the
	// batch between two requests.
	streamTokens = 4
	// transferTime bounds the transfer of a body, and of an answer after its deadline.
	transferTime = 30 * time.Second
)

// Server is the API as an http.Handler, safe for concurrent use.
type Server struct {
	generator Generator
	tokenizer Tokenizer
	opts      Options
	started   time.Time
	mux       http.ServeMux
}

// New returns the API of a policy. The generator outlives the requests.
func New(g Generator, t Tokenizer, o Options) *Server {
	if o.Deadline <= 0 {
		o.Deadline = 10 * time.Minute
	}
	if o.BodyBytes <= 0 {
		o.BodyBytes = 8 << 20
	}
	if o.Grace <= 0 {
		o.Grace = 10 * time.Second
	}
	s := &Server{generator: g, tokenizer: t, opts: o, started: time.Now()}
	s.mux.HandleFunc("GET /v1/models", s.models)
	s.mux.HandleFunc("GET /v1/models/{model...}", s.model)
	s.mux.HandleFunc("POST /v1/chat/completions", s.chat)
	s.mux.HandleFunc("POST /v1/completions", s.completions)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &apiError{status: http.StatusNotFound, Type: invalidRequest, Message: "unknown request URL: " + r.Method + " " + r.URL.Path})
	})
	return s
}

// Serve answers on l until ctx ends. Then it takes no new requests, lets those in
// progress go on for Grace, cancels the rest and returns nil. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errShutdown)
	h := http.Server{
		Handler: s, ReadHeaderTimeout: transferTime, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return base },
	}
	drained := make(chan error, 1)
	shutdown := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(s.opts.Grace, func() { cancel(errShutdown) })
		defer timer.Stop()
		last, done := context.WithTimeout(context.Background(), s.opts.Grace+transferTime)
		defer done()
		err := h.Shutdown(last)
		if err != nil {
			err = errors.Join(err, h.Close())
		}
		drained <- err
	})
	err := h.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		return <-drained
	}
	shutdown()
	return errors.Join(err, h.Close())
}

// ServeHTTP answers one request. It returns after everything that was generated
// for it has ended.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := http.NewResponseController(w)
	now := time.Now()
	// A writer that has no deadlines is not a connection and needs none.
	_ = c.SetReadDeadline(now.Add(transferTime))
	_ = c.SetWriteDeadline(now.Add(s.opts.Deadline + transferTime))
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.opts.Deadline, errDeadline)
	defer cancel()
	s.mux.ServeHTTP(w, r.WithContext(ctx))
}

type modelRecord struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

func (s *Server) record() modelRecord {
	return modelRecord{s.opts.Name, "model", s.started.Unix(), "ssr"}
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, struct {
		Object string        `json:"object"`
		Data   []modelRecord `json:"data"`
	}{"list", []modelRecord{s.record()}})
}

func (s *Server) model(w http.ResponseWriter, r *http.Request) {
	if err := s.named(r.PathValue("model")); err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, s.record())
}

// named checks the name of the model that a request is for.
func (s *Server) named(name string) error {
	switch name {
	case s.opts.Name:
		return nil
	case "":
		return invalid("model", "give the model; this server has %q", s.opts.Name)
	}
	return &apiError{
		status: http.StatusNotFound, Type: invalidRequest, Param: "model", Code: "model_not_found",
		Message: "the model " + strconv.Quote(name) + " does not exist; this server has " + strconv.Quote(s.opts.Name),
	}
}
