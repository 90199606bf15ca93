package cuda

// tileRows is rows, and attendSplit split, of attention_bf16.cu.
const (
	tileRows    = 16
	attendSplit = 128
)

// A tile of Attend is TileWords int64, TileSize bytes: the row in q and out of a token;
// where in the table the blocks of its sequence begin; how many keys it has, its own the
// last; the first of its heads that is meant, among those that share a key head; and how
// many heads there are, of it and of the tokens on the rows that follow, each of which has
// one key more.
const (
	TileWords = 5
	TileSize  = TileWords * 8
)

// TensorCores says whether Attend has a kernel for a.
func (a Attention) TensorCores() bool {
	return (a.Dim == 64 || a.Dim == 128) && a.KVHeads <= maxRows
}

// Tiles is how many tiles so many consecutive tokens of a sequence have.
func (a Attention) Tiles(tokens int) int { return ceil(tokens*a.Heads/a.KVHeads, tileRows) }

// AppendTiles appends the tiles of consecutive tokens of a sequence, the first of which
// is at row and has so many keys. A token of no keys gets zeros; it is alone.
func (a Attention) AppendTiles(words []int32, row, tokens, table, keys int) []int32 {
	group := a.Heads / a.KVHeads
	for at := 0; at < tokens*group; at += tileRows {
		token := at / group
		words = append(words, int32(row+token), int32(table), int32(keys+token), int32(at%group), int32(min(tileRows, tokens*group-at)))
	}
	return words
}

// Splits says whether so many tiles keep too few warps busy if each visits all keys of one.
func (a Attention) Splits(tiles int) bool { return tiles*a.KVHeads < manyWarps }

// manyWarps is twice what a GPU of 132 multiprocessors holds of Attend's.
const manyWarps = 2048

// AttendScratch is the bytes in which Attend joins n tiles of up to maxKeys keys.
func AttendScratch(a Attention, n, maxKeys int) int {
	return n * a.KVHeads * ceil(maxKeys, attendSplit) * tileRows * (a.Dim + 2) * 4
}

// Attend is the attention of n tiles (see TileWords) over a bfloat16 cache that holds
// their own keys and values already. q, which is rounded to bfloat16, has heads [H, D] at a
// stride of ldq elements a row; table is int64, numbers of cache blocks; no token has more
// than maxKeys keys. out is [rows, H, D]; lse [rows, H], the log of the softmax's
// denominator, may be 0.
//
// Where scratch is 0, each tile's keys are visited by one warp for each key head; else by
// as many as there are splits, see Splits. That changes no bit: a token's result depends
// neither on it, nor on the other tokens, nor on maxKeys.
func Attend(m Machine, a Attention, q Pointer, ldq int, cache, table, tiles Pointer, n, maxKeys int, scratch, out, lse Pointer) error {
	a.check("Attend")
	splits := ceil(maxKeys, attendSplit)
	check("Attend", a.TensorCores() && a.Scale > 0 && ldq%4 == 0, "%+v, %d elements a row", a, ldq)
	check("Attend", n > 0 && maxKeys > 0 && splits <= maxRows, "%d tiles of at most %d keys", n, maxKeys)
	softmax := scratch.At(n*a.KVHeads*splits*tileRows*a.Dim, 4)
	z := splits
	if scratch == 0 {
		splits, softmax, z = 0, 0, 1
	}
	const warps = 4 // of neighbours, which may read the same keys at about the same time
	err := m.Launch(Launch{
		Kernel: map[int]string{64: "attention_bf16_64", 128: "attention_bf16_128"}[a.Dim], Grid: [3]int{ceil(n, warps), a.KVHeads, z}, Threads: warps * 32,
		Args: []Arg{
			ptr(q), i32(ldq), ptr(cache), ptr(table), ptr(tiles), i32(n), i32(a.Heads), i32(a.KVHeads), i32(a.Window), f32(a.Scale),
			i32(splits), ptr(scratch), ptr(softmax), ptr(out), ptr(lse),
		},
	})
	if err != nil || splits == 0 {
		return err
	}
	return m.Launch(Launch{
		Kernel: "attention_join", Grid: [3]int{n * tileRows, a.KVHeads, 1}, Threads: a.Dim,
		Args: []Arg{
			ptr(scratch), ptr(softmax), ptr(tiles), i32(splits), i32(a.Heads), i32(a.KVHeads), i32(a.Dim), i32(a.Window), f32(a.Scale),
			ptr(out), ptr(lse),
		},
	})
}
