package token

import "container/heap"

// pair is two adjacent ids, the left one in the high half, so that pairs order
// as (left, right).
type pair uint64

func pairOf(a, b int32) pair         { return pair(uint32(a))<<32 | pair(uint32(b)) }
func (p pair) split() (int32, int32) { return int32(p >> 32), int32(uint32(p)) }

type merge struct{ rank, id int32 }

const noRank = int32(1<<31 - 1)

// scanLimit is the length in bytes up to which a piece is merged by scanning
// for the best pair; beyond it a heap keeps the cost at n log n.
const scanLimit = 96

// appendPiece appends the ids of one pre-token: the pair of the lowest rank,
// leftmost first, is merged until no pair has a rank.
func (t *Tokenizer) appendPiece(out []int32, piece string) []int32 {
	if len(piece) == 1 && t.pieces == nil {
		return append(out, t.byteID[piece[0]])
	}
	if t.wholeWords {
		if id, ok := t.vocab[piece]; ok {
			return append(out, id)
		}
	}
	if len(piece) > scanLimit {
		return t.appendLong(out, t.appendSymbols(make([]int32, 0, len(piece)), piece))
	}
	var idBuf, rankBuf, nextBuf [scanLimit]int32
	ids := t.appendSymbols(idBuf[:0], piece)
	n := len(ids)
	ranks, made := rankBuf[:n], nextBuf[:n]
	look := func(i int) {
		ranks[i] = noRank
		if i+1 < n {
			if m, ok := t.merges[pairOf(ids[i], ids[i+1])]; ok {
				ranks[i], made[i] = m.rank, m.id
			}
		}
	}
	for i := range n {
		look(i)
	}
	for {
		best, at := noRank, -1
		for i := range n {
			if ranks[i] < best {
				best, at = ranks[i], i
			}
		}
		if at < 0 {
			return append(out, ids[:n]...)
		}
		ids[at] = made[at]
		copy(ids[at+1:n-1], ids[at+2:n])
		copy(ranks[at+1:n-1], ranks[at+2:n])
		copy(made[at+1:n-1], made[at+2:n])
		n--
		look(at)
		if at > 0 {
			look(at - 1)
		}
	}
}

// candidate is a possible merge of the symbols at pos and its right neighbour,
// as they were when it was queued.
type candidate struct {
	rank, pos, id int32
	pair          pair
}

type candidates []candidate

func (c candidates) Len() int { return len(c) }
func (c candidates) Less(i, j int) bool {
	return c[i].rank < c[j].rank || c[i].rank == c[j].rank && c[i].pos < c[j].pos
}
func (c candidates) Swap(i, j int) { c[i], c[j] = c[j], c[i] }
func (c *candidates) Push(x any)   { *c = append(*c, x.(candidate)) }
func (c *candidates) Pop() any {
	last := (*c)[len(*c)-1]
	*c = (*c)[:len(*c)-1]
	return last
}

// appendLong merges the symbols ids, of which there are some.
func (t *Tokenizer) appendLong(out, ids []int32) []int32 {
	type symbol struct{ id, prev, next int32 }
	n := int32(len(ids))
	sym := make([]symbol, n)
	for i, id := range ids {
		sym[i] = symbol{id, int32(i) - 1, int32(i) + 1}
	}
	sym[n-1].next = -1
	var queue candidates
	look := func(i int32) (candidate, bool) {
		if i < 0 || sym[i].next < 0 {
			return candidate{}, false
		}
		p := pairOf(sym[i].id, sym[sym[i].next].id)
		m, ok := t.merges[p]
		return candidate{m.rank, i, m.id, p}, ok
	}
	for i := range n {
		if c, ok := look(i); ok {
			queue = append(queue, c)
		}
	}
	heap.Init(&queue)
	for len(queue) > 0 {
		c := heap.Pop(&queue).(candidate)
		s := &sym[c.pos]
		if s.id < 0 || s.next < 0 || pairOf(s.id, sym[s.next].id) != c.pair {
			continue
		}
		gone := s.next
		s.id, s.next = c.id, sym[gone].next
		if s.next >= 0 {
			sym[s.next].prev = c.pos
		}
		sym[gone].id = -1
		if c, ok := look(c.pos); ok {
			heap.Push(&queue, c)
		}
		if c, ok := look(s.prev); ok {
			heap.Push(&queue, c)
		}
	}
	for i := int32(0); i >= 0; i = sym[i].next {
		out = append(out, sym[i].id)
	}
	return out
}
