package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/ssr-go/ssr/rl/train"
)

// Progress is what the service tells about a run.
type Progress struct {
	// State is "running", "done", "stopped" or "failed".
	State string `json:"state"`
	// Phase of the current Step: "play", "update", "checkpoint" or "step".
	Phase train.Phase `json:"phase,omitempty"`
	Step  int         `json:"step"`
	Steps int         `json:"steps"`
	// Episodes and Tokens of the current step so far.
	Episodes int `json:"episodes"`
	Tokens   int `json:"tokens"`
	// Last are the metrics of the last complete step.
	Last    *train.Metrics `json:"last,omitempty"`
	Weights string         `json:"weights,omitempty"`
	Error   string         `json:"error,omitempty"`
}

// Service starts runs and reports on them. One run computes at a time, the
// others wait: they would only take each other's cores.
type Service struct {
	http.ServeMux
	ctx  context.Context // ends every run
	dir  string
	turn chan struct{}
	all  sync.WaitGroup

	mu   sync.Mutex
	runs []*run
}

type run struct {
	cancel context.CancelFunc

	mu       sync.Mutex
	progress Progress
}

// NewService keeps its runs in folders of dir and ends them with ctx.
func NewService(ctx context.Context, dir string) *Service {
	s := &Service{ctx: ctx, dir: dir, turn: make(chan struct{}, 1)}
	s.HandleFunc("POST /runs", s.start)
	s.HandleFunc("GET /runs/{id}", s.report)
	s.HandleFunc("DELETE /runs/{id}", s.stop)
	return s
}

// Wait returns when every run has ended.
func (s *Service) Wait() { s.all.Wait() }

func (s *Service) start(w http.ResponseWriter, r *http.Request) {
	var job Job
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
	body.DisallowUnknownFields()
	if err := body.Decode(&job); err != nil {
		http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
		return
	}
	if job.Repo == "" || job.Model == "" || job.Steps < 1 {
		http.Error(w, `give "repo", "model" and "steps"`, http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	started := &run{cancel: cancel, progress: Progress{State: "running", Steps: job.Steps}}
	s.mu.Lock()
	s.runs = append(s.runs, started)
	id := len(s.runs)
	s.mu.Unlock()
	s.all.Go(func() {
		defer cancel()
		s.play(ctx, started, job, filepath.Join(s.dir, strconv.Itoa(id)))
	})
	w.Header().Set("Location", fmt.Sprintf("/runs/%d", id))
	w.WriteHeader(http.StatusAccepted)
}

// play waits for its turn and trains.
func (s *Service) play(ctx context.Context, r *run, job Job, dir string) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
	}
	sum, err := Train(ctx, job, dir, r.follow)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress.State = "done"
	if err != nil {
		r.progress.State, r.progress.Error = "failed", err.Error()
	}
	if ctx.Err() != nil {
		r.progress.State = "stopped"
	}
	if sum.Checkpoint != "" {
		r.progress.Weights = train.Weights(sum.Checkpoint)
	}
}

// follow is told by the loop about its progress; it must return at once.
func (r *run) follow(e train.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &r.progress
	p.Phase, p.Step, p.Steps, p.Episodes, p.Tokens = e.Phase, e.Step, e.Steps, e.Episodes, e.Tokens
	if e.Metrics != nil {
		p.Last = e.Metrics
	}
}

func (s *Service) find(w http.ResponseWriter, r *http.Request) *run {
	id, err := strconv.Atoi(r.PathValue("id"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || id < 1 || id > len(s.runs) {
		http.Error(w, "no such run", http.StatusNotFound)
		return nil
	}
	return s.runs[id-1]
}

func (s *Service) report(w http.ResponseWriter, r *http.Request) {
	found := s.find(w, r)
	if found == nil {
		return
	}
	found.mu.Lock()
	data, err := json.Marshal(found.progress)
	found.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(data)
}

func (s *Service) stop(w http.ResponseWriter, r *http.Request) {
	if found := s.find(w, r); found != nil {
		found.cancel()
		w.WriteHeader(http.StatusNoContent)
	}
}
