package cuda

// PageTokens is how many tokens a block of the KV cache holds.
const PageTokens = 32

// splitKeys is SPLIT of attention.cu.
const splitKeys = 256

// Attention is the shape of a layer's attention.
type Attention struct {
	Heads, KVHeads, Dim int
	// Window is how many keys a token sees, its own the last; 0 is all before it.
	Window int
	// Scale multiplies the products of queries and keys.
	Scale float64
}

// PageElements is the number of elements of a cache block: [K, 2, PageTokens, D].
func (a Attention) PageElements() int { return a.KVHeads * 2 * PageTokens * a.Dim }

func (a Attention) check(kernel string) {
	check(kernel, a.KVHeads > 0 && a.Heads%a.KVHeads == 0 && a.Dim > 0 && a.Dim%2 == 0 && a.Window >= 0, "%+v", a)
}

// Fits says whether every GPU has the shared memory that Decode needs for a.
func (a Attention) Fits() bool { return a.shared() <= maxShared && a.KVHeads <= maxRows }

// shared is the bytes of shared memory that a block of Decode takes.
func (a Attention) shared() int { return a.Heads / a.KVHeads * (a.Dim + splitKeys) * 4 }

// maxShared is the dynamic shared memory that every GPU gives a block unasked.
const maxShared = 48 << 10

// Rope rotates the first n heads, of width d, of rows of x at a stride of ld in place
// (halves convention: element i pairs with i + d/2), or back. position is int64
// [rows]; cos and sin are float32 [positions, d/2].
func Rope(m Machine, t DType, x, position, cos, sin Pointer, rows, n, d, ld int, inverse bool) error {
	back := map[bool]int{true: 1}[inverse]
	return eachRows(rows, func(first, count int) error {
		return m.Launch(Launch{
			Kernel: "rope_" + t.String(), Grid: [3]int{n, count, 1}, Threads: warps(d / 2),
			Args: []Arg{ptr(x.At(first*ld, t.Size())), i32(ld), ptr(position.At(first, 8)), ptr(cos), ptr(sin), i32(d), i32(back)},
		})
	})
}

// RopeAppend rotates the queries and keys of qkv, float32 [T, (H+2K)·D], in place, as Rope
// does, rounds all of it to t, the type of the cache, and copies keys and values there.
// position is int64 [T]; slot int64 [T] is block·PageTokens + place in it, or -1 for a
// token that is not kept, whose keys and values stay as they are. Where cos is 0, all is
// rotated already.
func RopeAppend(m Machine, t DType, a Attention, qkv, position, slot, cos, sin, cache Pointer, tokens int) error {
	a.check("RopeAppend")
	row := (a.Heads + 2*a.KVHeads) * a.Dim
	return eachRows(tokens, func(first, n int) error {
		return m.Launch(Launch{
			Kernel: "rope_append_" + t.String(), Grid: [3]int{a.Heads + 2*a.KVHeads, n, 1}, Threads: warps(a.Dim / 2),
			Args: []Arg{
				ptr(qkv.At(first*row, 4)), ptr(position.At(first, 8)), ptr(slot.At(first, 8)), ptr(cos), ptr(sin),
				i32(a.Heads), i32(a.KVHeads), i32(a.Dim), ptr(cache),
			},
		})
	})
}

// QuerySize is the bytes of a query of Decode: three int64, its row in q and out, where
// in the table the blocks of its sequence begin, and how many keys it has, its own the
// last. A query of no keys gets zeros.
const QuerySize = 24

// DecodeScratch is the bytes that Decode needs for queries of up to maxKeys keys.
func DecodeScratch(a Attention, queries, maxKeys int) int {
	return queries * a.Heads * ceil(maxKeys, splitKeys) * (a.Dim + 2) * 4
}

// Decode is the attention of n queries over a float32 cache that holds their own keys and
// values already. queries is [n] of QuerySize; q has their heads [H, D] at a stride of
// ldq elements a row; table is int64, numbers of cache blocks; no query has more than
// maxKeys keys. out is [rows, H, D]; lse float32 [rows, H], the log of the softmax's
// denominator, may be 0. A query's result does not depend on the others, nor on maxKeys.
func Decode(m Machine, a Attention, q Pointer, ldq int, cache, table, queries Pointer, n, maxKeys int, scratch, out, lse Pointer) error {
	a.check("Decode")
	splits := ceil(maxKeys, splitKeys)
	check("Decode", n > 0 && maxKeys > 0, "%d queries of at most %d keys", n, maxKeys)
	check("Decode", a.Fits() && splits <= maxRows, "%+v needs %d bytes of shared memory a block; at most %d", a, a.shared(), maxShared)
	ml := scratch.At(n*a.Heads*splits*a.Dim, 4)
	err := m.Launch(Launch{
		Kernel: "decode_f32", Grid: [3]int{n, a.KVHeads, splits}, Threads: 128, Shared: a.shared(),
		Args: []Arg{
			ptr(q), i32(ldq), ptr(cache), ptr(table), ptr(queries), i32(a.Heads), i32(a.KVHeads), i32(a.Dim),
			i32(a.Window), f32(a.Scale), ptr(scratch), ptr(ml),
		},
	})
	if err != nil {
		return err
	}
	return m.Launch(Launch{
		Kernel: "decode_join_f32", Grid: [3]int{n, a.Heads, 1}, Threads: warps(a.Dim),
		Args: []Arg{ptr(scratch), ptr(ml), ptr(queries), i32(splits), i32(a.Heads), i32(a.Dim), i32(a.Window), ptr(out), ptr(lse)},
	})
}
