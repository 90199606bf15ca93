// Package sched decides what a generation engine computes next: continuous
// batching over a paged KV cache, as a pure state machine without tensors,
// clocks or goroutines. The engine calls Step, computes the plan, calls Commit,
// and reports each sampled token with Append or Finish.
//
// Sequences whose histories begin alike share the full blocks of that prefix.
// The cache of a finished turn stays parked under its trajectory's id, so that
// the next turn prefills only what is new, until memory is wanted or Release.
// Whatever is evicted is prefilled again. Content is keyed by policy version: what
// an older one computed is prefilled again, or, within a bound, kept by the
// sequence that holds it and shared with no other. Where all layers slide, blocks
// that have left the window are let go of.
//
// Fairness: requests start in order of arrival, and memory is taken from the
// youngest, so the oldest request always advances.
package sched

import (
	"fmt"
	"slices"
)

// Config bounds the engine's work and memory.
type Config struct {
	// BlockTokens is the number of tokens in a KV block.
	BlockTokens int
	// Blocks is the memory budget: how many blocks there are.
	Blocks int
	// MaxSequences is how many requests run at once.
	MaxSequences int
	// MaxRows bounds the tokens fed in one step, over all sequences.
	MaxRows int
	// MaxChunk bounds the tokens fed in one step for one sequence.
	MaxChunk int
	// Window is how many tokens a query sees, itself the last of them, where that
	// is so in every layer; 0 when some layer sees all. Kernels read from the last
	// multiple of Span at or before the window's first token; 0 means BlockTokens.
	Window, Span int
	// MaxStale is how many versions old a sequence's cache may become before it is
	// computed again; 0 computes it again after every update.
	MaxStale int64
}

func (c Config) validate() error {
	if c.BlockTokens <= 0 || c.Blocks <= 0 || c.MaxSequences <= 0 {
		return fmt.Errorf("sched: BlockTokens %d, Blocks %d and MaxSequences %d must be positive", c.BlockTokens, c.Blocks, c.MaxSequences)
	}
	if c.MaxRows < c.MaxSequences+c.BlockTokens {
		return fmt.Errorf("sched: MaxRows %d leaves no room to prefill beside %d decoding sequences; want at least %d", c.MaxRows, c.MaxSequences, c.MaxSequences+c.BlockTokens)
	}
	if c.MaxChunk < c.BlockTokens {
		return fmt.Errorf("sched: MaxChunk %d is less than a block of %d tokens", c.MaxChunk, c.BlockTokens)
	}
	if c.Window < 0 || c.Span < 0 || c.MaxStale < 0 || c.Span%c.BlockTokens != 0 {
		return fmt.Errorf("sched: Window %d, Span %d and MaxStale %d must not be negative, and Span a multiple of BlockTokens %d", c.Window, c.Span, c.MaxStale, c.BlockTokens)
	}
	return nil
}

// needed is the first token that a query at a position makes a kernel read.
func (c Config) needed(position int) int {
	low := position + 1 - c.Window
	if c.Window == 0 || low <= 0 {
		return 0
	}
	return low / c.Span * c.Span
}

// most is the most blocks that a sequence of so many tokens holds at a time.
func (c Config) most(tokens int) int {
	all := (tokens + c.BlockTokens - 1) / c.BlockTokens
	if c.Window == 0 {
		return all
	}
	// The window of a chunk's first query, what its span adds, and the chunk.
	return min(all, (c.Window+c.Span+c.MaxChunk)/c.BlockTokens+2)
}

// Ticket names an active request; tickets ascend in order of arrival.
type Ticket uint64

// Work is what one sequence contributes to a step: feed Tokens, which are the
// history's [Start, Start+len(Tokens)), at those positions.
type Work struct {
	Ticket Ticket
	Start  int
	Tokens []int32
	// Table holds the block numbers of the history up to the end of Tokens; any
	// where the window has passed.
	Table []int32
	// Oldest is the oldest version that computed a part of the history's cache.
	Oldest int64
	// Sample asks for the next token: Tokens reaches the end of the history.
	Sample bool
}

// Stats counts what happened since the start.
type Stats struct {
	// Prefilled and Decoded count tokens fed; Reused counts history tokens that
	// were found in the cache instead of being fed.
	Prefilled, Decoded, Reused int
	// Preempted counts requests that lost their memory to an older one.
	Preempted int
	// Waiting, Running and Parked are how many sequences are in each state now;
	// FreeBlocks is how many blocks nobody holds.
	Waiting, Running, Parked, FreeBlocks int
}

type sequence struct {
	ticket  Ticket
	id      string
	tokens  []int32
	limit   int // the length that tokens may reach
	done    int // tokens in the cache
	blocks  []int32
	gone    int   // of blocks, the first so many were let go of
	oldest  int64 // version of what is in them
	keys    []key // of the full blocks of tokens, as far as needed
	release bool  // do not park
	parked  uint64
}

// Scheduler is the state machine. It is not safe for concurrent use.
type Scheduler struct {
	cfg     Config
	pool    *pool
	version int64
	last    Ticket
	clock   uint64

	active  map[Ticket]*sequence
	waiting []*sequence // ascending tickets
	running []*sequence // ascending tickets
	parked  map[string]*sequence

	plan    []Work
	pending map[key]bool // blocks that the outstanding plan fills
	stats   Stats
}

// New returns an empty scheduler for policy version 0.
func New(cfg Config) (*Scheduler, error) {
	if cfg.Span == 0 {
		cfg.Span = cfg.BlockTokens
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Scheduler{
		cfg: cfg, pool: newPool(cfg.Blocks),
		active: map[Ticket]*sequence{}, parked: map[string]*sequence{}, pending: map[key]bool{},
	}, nil
}

// Add queues a request to continue tokens by at most limit more. The tokens are
// copied. It fails when the whole history could not fit the cache even alone.
func (s *Scheduler) Add(id string, tokens []int32, limit int) (Ticket, error) {
	s.idle("Add")
	if len(tokens) == 0 || limit <= 0 {
		return 0, fmt.Errorf("sched: request %q has %d tokens and asks for %d; both must be positive", id, len(tokens), limit)
	}
	if n := s.cfg.most(len(tokens) + limit); n > s.cfg.Blocks {
		return 0, fmt.Errorf("sched: request %q needs room for %d tokens but the KV cache holds %d; raise its memory", id, n*s.cfg.BlockTokens, s.cfg.Blocks*s.cfg.BlockTokens)
	}
	s.last++
	q := &sequence{ticket: s.last, id: id, tokens: slices.Clone(tokens), limit: len(tokens) + limit}
	s.active[q.ticket] = q
	s.waiting = append(s.waiting, q)
	return q.ticket, nil
}

// Append adds the sampled token to a request's history. It reports whether the
// request may go on; at its limit the caller must Finish it.
func (s *Scheduler) Append(t Ticket, token int32) bool {
	s.idle("Append")
	q := s.must(t)
	if len(q.tokens) >= q.limit {
		panic(fmt.Sprintf("sched: request %q grows past its limit of %d tokens", q.id, q.limit))
	}
	q.tokens = append(q.tokens, token)
	return len(q.tokens) < q.limit
}

// Finish ends a request, done or cancelled, and parks its cache under its id.
func (s *Scheduler) Finish(t Ticket) {
	s.idle("Finish")
	q := s.must(t)
	delete(s.active, t)
	s.waiting = without(s.waiting, q)
	s.running = without(s.running, q)
	if q.release || q.done == 0 {
		s.dropFrom(q, 0)
		return
	}
	if old := s.parked[q.id]; old != nil {
		s.dropFrom(old, 0)
	}
	s.clock++
	q.parked = s.clock
	s.parked[q.id] = q
}

// Release drops what is kept for a trajectory. If a request of it is still
// active, its cache is dropped when it finishes.
func (s *Scheduler) Release(id string) {
	s.idle("Release")
	if q := s.parked[id]; q != nil {
		s.dropFrom(q, 0)
		delete(s.parked, id)
	}
	for _, q := range s.active {
		if q.id == id {
			q.release = true
		}
	}
}

// SetVersion says which version computes from now on. What others computed is
// shared no longer. Sequences keep theirs while it is at most MaxStale versions old;
// else it is forgotten, and active requests are prefilled again and go on from
// where they are.
func (s *Scheduler) SetVersion(v int64) {
	s.idle("SetVersion")
	if v == s.version {
		return
	}
	s.version = v
	forget := func(q *sequence) bool {
		q.keys = nil
		if age := v - q.oldest; q.done > 0 && age >= 0 && age <= s.cfg.MaxStale {
			return false
		}
		s.dropFrom(q, 0)
		q.oldest = v
		return true
	}
	for id, q := range s.parked {
		if forget(q) {
			delete(s.parked, id)
		}
	}
	for _, q := range s.active {
		forget(q)
	}
	s.pool.clear()
}

// Stats returns the counts so far.
func (s *Scheduler) Stats() Stats {
	st := s.stats
	st.Waiting, st.Running, st.Parked, st.FreeBlocks = len(s.waiting), len(s.running), len(s.parked), s.pool.available()
	return st
}

// Commit records that the plan of the last Step was computed.
func (s *Scheduler) Commit() {
	for _, w := range s.plan {
		q := s.active[w.Ticket]
		q.done = w.Start + len(w.Tokens)
		for b := w.Start / s.cfg.BlockTokens; b < q.done/s.cfg.BlockTokens && q.oldest == s.version; b++ {
			s.pool.publish(q.blocks[b], s.key(q, b))
		}
		s.passed(q)
		if len(w.Tokens) == 1 && w.Sample {
			s.stats.Decoded++
		} else {
			s.stats.Prefilled += len(w.Tokens)
		}
	}
	s.plan = nil
	clear(s.pending)
}

func (s *Scheduler) idle(op string) {
	if s.plan != nil {
		panic("sched: " + op + " between Step and Commit")
	}
}

func (s *Scheduler) must(t Ticket) *sequence {
	q := s.active[t]
	if q == nil {
		panic(fmt.Sprintf("sched: ticket %d is not active", t))
	}
	return q
}

// key is the key of full block b of a history.
func (s *Scheduler) key(q *sequence, b int) key {
	for len(q.keys) <= b {
		parent := rootKey(s.version)
		if n := len(q.keys); n > 0 {
			parent = q.keys[n-1]
		}
		at := len(q.keys) * s.cfg.BlockTokens
		q.keys = append(q.keys, parent.next(q.tokens[at:at+s.cfg.BlockTokens]))
	}
	return q.keys[b]
}

// dropFrom lets go of a sequence's blocks from number b on, last first, so that
// the pool forgets the end of a prefix before its beginning.
func (s *Scheduler) dropFrom(q *sequence, b int) {
	for i := len(q.blocks) - 1; i >= max(b, q.gone); i-- {
		s.pool.drop(q.blocks[i])
	}
	q.blocks = q.blocks[:b]
	q.done = min(q.done, b*s.cfg.BlockTokens)
	q.gone = min(q.gone, b)
}

// passed lets go of the blocks that no query from the end of the cache on reads.
func (s *Scheduler) passed(q *sequence) {
	for until := s.cfg.needed(q.done) / s.cfg.BlockTokens; q.gone < until; q.gone++ {
		s.pool.drop(q.blocks[q.gone])
		q.blocks[q.gone] = 0
	}
}

func without(list []*sequence, q *sequence) []*sequence {
	if i := slices.Index(list, q); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}
