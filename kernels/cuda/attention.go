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

// RopeAppend rotates the queries of qkv [T, (H+2K)·D] in place (halves convention:
// element i pairs with i + D/2), and writes the rotated keys and the values to the
// cache. position is [T] int32; slot [T] int64 is block·PageTokens + place in it, or
// -1 for a token that is not kept; cos and sin are float32 [positions, D/2].
func RopeAppend(m Machine, t DType, a Attention, qkv, position, slot, cos, sin, cache Pointer, tokens int) error {
	a.check("RopeAppend")
	row := (a.Heads + 2*a.KVHeads) * a.Dim
	return eachRows(tokens, func(first, n int) error {
		return m.Launch(Launch{
			Kernel: "rope_append_" + t.String(), Grid: [3]int{a.Heads + 2*a.KVHeads, n, 1}, Threads: warps(a.Dim / 2),
			Args: []Arg{
				ptr(qkv.At(first*row, t.Size())), ptr(position.At(first, 4)), ptr(slot.At(first, 8)), ptr(cos), ptr(sin),
				i32(a.Heads), i32(a.KVHeads), i32(a.Dim), ptr(cache),
			},
		})
	})
}

// DecodeScratch is the bytes that Decode needs for sequences of up to maxKeys keys.
func DecodeScratch(a Attention, sequences, maxKeys int) int {
	return sequences * a.Heads * ceil(maxKeys, splitKeys) * (a.Dim + 2) * 4
}

// maxShared is the dynamic shared memory that every GPU gives a block unasked.
const maxShared = 48 << 10

// Decode is the attention of one new token of each sequence over its cache, which
// holds the token's own key and value already. q points at the queries, row by row
// at a stride of ldq elements; table is int32 [sequences, ldtable], the cache blocks
// of each; length [sequences] int32 counts the keys, at most maxKeys. out is
// [sequences, H, D].
func Decode(m Machine, t DType, a Attention, q Pointer, ldq int, cache, table Pointer, ldtable int, length Pointer, sequences, maxKeys int, scratch, out Pointer) error {
	a.check("Decode")
	splits := ceil(maxKeys, splitKeys)
	group := a.Heads / a.KVHeads
	shared := group * (a.Dim + splitKeys) * 4
	check("Decode", sequences > 0 && maxKeys > 0 && maxKeys <= ldtable*PageTokens, "%d sequences of at most %d keys in %d blocks", sequences, maxKeys, ldtable)
	check("Decode", shared <= maxShared && splits <= maxRows && a.KVHeads <= maxRows, "%+v needs %d bytes of shared memory a block; at most %d", a, shared, maxShared)
	ml := scratch.At(sequences*a.Heads*splits*a.Dim, 4)
	err := m.Launch(Launch{
		Kernel: "decode_" + t.String(), Grid: [3]int{sequences, a.KVHeads, splits}, Threads: 128, Shared: shared,
		Args: []Arg{
			ptr(q), i32(ldq), ptr(cache), ptr(table), i32(ldtable), ptr(length), i32(a.Heads), i32(a.KVHeads), i32(a.Dim),
			i32(a.Window), f32(a.Scale), ptr(scratch), ptr(ml),
		},
	})
	if err != nil {
		return err
	}
	return m.Launch(Launch{
		Kernel: "decode_join_" + t.String(), Grid: [3]int{sequences, a.Heads, 1}, Threads: warps(a.Dim),
		Args: []Arg{ptr(scratch), ptr(ml), ptr(length), i32(splits), i32(a.Heads), i32(a.Dim), i32(a.Window), ptr(out)},
	})
}
