package sched

import (
	"crypto/sha256"
	"encoding/binary"
)

// key names the content of a full block: its tokens, all that precede them, and
// the policy version that computed it.
type key [16]byte

func rootKey(version int64) key {
	return key(sha256.New().Sum(binary.LittleEndian.AppendUint64([]byte("version\x00"), uint64(version)))[:16])
}

func (k key) next(tokens []int32) key {
	buf := append(make([]byte, 0, 16+4*len(tokens)), k[:]...)
	for _, t := range tokens {
		buf = binary.LittleEndian.AppendUint32(buf, uint32(t))
	}
	sum := sha256.Sum256(buf)
	return key(sum[:16])
}

// pool counts the holders of every block. A block is free, held, or kept: full,
// held by nobody, and still indexed by its key until its memory is wanted.
type pool struct {
	refs  []int
	keys  []key
	index map[key]int32
	named []bool
	free  []int32
	// kept is a ring through prev and next, least recently dropped first; the
	// entry past the last block is its anchor.
	prev, next []int32
	kept       int
}

func newPool(n int) *pool {
	p := &pool{
		refs: make([]int, n), keys: make([]key, n), named: make([]bool, n), index: map[key]int32{},
		prev: make([]int32, n+1), next: make([]int32, n+1),
	}
	p.prev[n], p.next[n] = int32(n), int32(n)
	for b := n - 1; b >= 0; b-- {
		p.free = append(p.free, int32(b))
	}
	return p
}

func (p *pool) available() int { return len(p.free) + p.kept }

// take gives a block to one holder, forgetting the oldest kept one if it must.
func (p *pool) take() (int32, bool) {
	if len(p.free) == 0 {
		oldest := p.next[len(p.refs)]
		if int(oldest) == len(p.refs) {
			return 0, false
		}
		p.unlink(oldest)
		p.forget(oldest)
		p.free = append(p.free, oldest)
	}
	b := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.refs[b] = 1
	return b, true
}

// find holds the block with that content, if there is one.
func (p *pool) find(k key) (int32, bool) {
	b, ok := p.index[k]
	if !ok {
		return 0, false
	}
	if p.refs[b] == 0 {
		p.unlink(b)
	}
	p.refs[b]++
	return b, true
}

// publish makes a full block findable; the first of several equal ones wins.
func (p *pool) publish(b int32, k key) {
	if _, ok := p.index[k]; ok || p.named[b] {
		return
	}
	p.index[k], p.keys[b], p.named[b] = b, k, true
}

func (p *pool) drop(b int32) {
	p.refs[b]--
	switch {
	case p.refs[b] < 0:
		panic("sched: block dropped more often than held")
	case p.refs[b] > 0:
	case p.named[b]:
		end := int32(len(p.refs))
		p.prev[b], p.next[b] = p.prev[end], end
		p.next[p.prev[b]], p.prev[end] = b, b
		p.kept++
	default:
		p.free = append(p.free, b)
	}
}

// clear forgets all content; held blocks stay with their holders.
func (p *pool) clear() {
	end := int32(len(p.refs))
	for b := p.next[end]; b != end; b = p.next[end] {
		p.unlink(b)
		p.free = append(p.free, b)
	}
	clear(p.index)
	clear(p.named)
}

func (p *pool) forget(b int32) {
	delete(p.index, p.keys[b])
	p.named[b] = false
}

func (p *pool) unlink(b int32) {
	p.next[p.prev[b]], p.prev[p.next[b]] = p.next[b], p.prev[b]
	p.kept--
}
