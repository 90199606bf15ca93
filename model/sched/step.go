package sched

import (
	"cmp"
	"slices"
)

// Step plans the next computation. It returns nil when there is nothing to do;
// otherwise Commit must follow before any other call. Sequences that wait for
// their next token come first, then prefills in order of arrival.
func (s *Scheduler) Step() []Work {
	s.idle("Step")
	s.admit()
	rows := s.cfg.MaxRows
	// A sequence may lose its memory while an older one is planned.
	for _, q := range slices.Clone(s.running) {
		if len(q.tokens)-q.done == 1 && s.isRunning(q) {
			rows -= s.feed(q, q.done+1)
		}
	}
	for _, q := range slices.Clone(s.running) {
		if len(q.tokens)-q.done > 1 && s.isRunning(q) {
			rows -= s.prefill(q, rows)
		}
	}
	if len(s.plan) == 0 {
		s.plan = nil
	}
	return s.plan
}

// admit starts waiting requests in order of arrival while there is memory for
// their histories. The first one always starts when nothing runs.
func (s *Scheduler) admit() {
	for len(s.waiting) > 0 && len(s.running) < s.cfg.MaxSequences {
		q := s.waiting[0]
		s.adopt(q)
		s.reuse(q)
		need := s.wants(q)
		for _, r := range s.running {
			need += s.wants(r)
		}
		for s.pool.available() < need && s.evict() {
		}
		if s.pool.available() < need && len(s.running) > 0 {
			s.dropFrom(q, 0)
			return
		}
		s.stats.Reused += q.done
		s.waiting = s.waiting[1:]
		i, _ := slices.BinarySearchFunc(s.running, q, byTicket)
		s.running = slices.Insert(s.running, i, q)
	}
}

// wants is how many blocks a sequence will take beside those it holds until it has
// its next token.
func (s *Scheduler) wants(q *sequence) int {
	return max(0, s.cfg.most(len(q.tokens)+1)-len(q.blocks)+q.gone)
}

// adopt moves what was kept of q's trajectory to q, as far as the histories agree.
func (s *Scheduler) adopt(q *sequence) {
	old := s.parked[q.id]
	if old == nil {
		return
	}
	delete(s.parked, q.id)
	// The last token is always fed, since its logits are wanted.
	n := min(old.done, len(q.tokens)-1)
	same := 0
	for same < n && old.tokens[same] == q.tokens[same] {
		same++
	}
	if same < old.done {
		// A block that others may find is never written again.
		b := same / s.cfg.BlockTokens
		if same%s.cfg.BlockTokens != 0 && (s.pool.named[old.blocks[b]] || s.pool.refs[old.blocks[b]] > 1) {
			same = b * s.cfg.BlockTokens
		}
		if s.cfg.needed(same) < old.gone*s.cfg.BlockTokens {
			same = 0 // what the next query reads is gone
		}
		s.dropFrom(old, s.count(same))
	}
	q.blocks, q.gone, q.done, q.oldest = old.blocks, old.gone, same, old.oldest
}

// reuse attaches blocks that hold what q would compute next.
func (s *Scheduler) reuse(q *sequence) {
	if q.done == 0 {
		q.oldest = s.version
	}
	if q.done%s.cfg.BlockTokens != 0 || q.oldest != s.version {
		return
	}
	for q.done+s.cfg.BlockTokens < len(q.tokens) {
		b, ok := s.pool.find(s.key(q, len(q.blocks)))
		if !ok {
			return
		}
		q.blocks = append(q.blocks, b)
		q.done += s.cfg.BlockTokens
		s.passed(q)
	}
}

// prefill plans the next chunk of a history within rows and returns its size.
// Chunks end on a block's end, so that others can share all of it. When the
// next block is being filled for someone else, q waits for it.
func (s *Scheduler) prefill(q *sequence, rows int) int {
	before := q.done
	s.reuse(q)
	s.stats.Reused += q.done - before
	end := len(q.tokens)
	if most := q.done + min(rows, s.cfg.MaxChunk); end > most {
		end = most / s.cfg.BlockTokens * s.cfg.BlockTokens
	}
	if end <= q.done {
		return 0
	}
	first, last := s.count(q.done), end/s.cfg.BlockTokens
	alone := q.oldest != s.version // its blocks are of no use to others, nor theirs to it
	if !alone && first < last && s.pending[s.key(q, first)] && first*s.cfg.BlockTokens == q.done {
		return 0
	}
	n := s.feed(q, end)
	if n > 0 && !alone {
		for b := first; b < last; b++ {
			s.pending[s.key(q, b)] = true
		}
	}
	return n
}

// feed plans q's history up to end, with the blocks that this takes, and returns
// the number of rows: 0 when q had to give up its memory instead.
func (s *Scheduler) feed(q *sequence, end int) int {
	for len(q.blocks) < s.count(end) {
		b, ok := s.pool.take()
		if !ok {
			if s.evict() {
				continue
			}
			victim := s.running[len(s.running)-1]
			s.preempt(victim)
			if victim == q {
				return 0
			}
			continue
		}
		q.blocks = append(q.blocks, b)
	}
	s.plan = append(s.plan, Work{
		Ticket: q.ticket, Start: q.done, Tokens: q.tokens[q.done:end:end], Table: slices.Clone(q.blocks[:s.count(end)]),
		Sample: end == len(q.tokens), Oldest: q.oldest,
	})
	return end - q.done
}

// preempt takes a running sequence's memory and queues it again.
func (s *Scheduler) preempt(q *sequence) {
	s.stats.Preempted++
	s.plan = slices.DeleteFunc(s.plan, func(w Work) bool { return w.Ticket == q.ticket })
	s.dropFrom(q, 0)
	s.running = without(s.running, q)
	i, _ := slices.BinarySearchFunc(s.waiting, q, byTicket)
	s.waiting = slices.Insert(s.waiting, i, q)
}

// evict drops the cache that was parked longest ago.
func (s *Scheduler) evict() bool {
	var oldest *sequence
	for _, q := range s.parked {
		if oldest == nil || q.parked < oldest.parked {
			oldest = q
		}
	}
	if oldest == nil {
		return false
	}
	delete(s.parked, oldest.id)
	s.dropFrom(oldest, 0)
	return true
}

func (s *Scheduler) count(tokens int) int {
	return (tokens + s.cfg.BlockTokens - 1) / s.cfg.BlockTokens
}

func (s *Scheduler) isRunning(q *sequence) bool {
	_, ok := slices.BinarySearchFunc(s.running, q, byTicket)
	return ok
}

func byTicket(a, b *sequence) int { return cmp.Compare(a.ticket, b.ticket) }
