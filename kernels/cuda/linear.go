package cuda

import "fmt"

// Linear computes y [R, N] = x [R, C] @ Wᵀ + bias, or adds it to y, so that no row
// depends on the others. W is [N, C] of t; x is of that, or of float32 to be rounded to
// it, as of says; y and bias [N] are float32. bias may be 0. scratch is LinearScratch bytes.
func Linear(m Machine, t, of DType, x, w, bias, y Pointer, rows, n, c int, add bool, scratch Pointer) error {
	check("Linear", rows > 0 && n > 0 && c > 0 && (of == t || of == F32), "%v [%d, %d] by %v [%d, %d]", of, rows, c, t, n, c)
	if t == BF16 {
		return TilingOf(rows, n, c).Linear(m, of, x, w, bias, y, rows, n, c, add, scratch)
	}
	high, wide, threads := 16, 32, 128
	switch {
	case rows > 64 && ceil(rows, 128)*ceil(n, 128) >= fullGrid:
		high, wide, threads = 128, 128, 256
	case rows > 16 && ceil(rows, 64)*ceil(n, 64) >= fullGrid:
		high, wide, threads = 64, 64, 256
	}
	return linearTiles(m, fmt.Sprintf("linear_f32_%dx%d", high, wide), high, wide, threads, of, x, w, bias, y, rows, n, c, add)
}

// linearTiles launches a kernel whose blocks compute tiles of high by wide.
func linearTiles(m Machine, kernel string, high, wide, threads int, of DType, x, w, bias, y Pointer, rows, n, c int, add bool) error {
	return eachRows(ceil(rows, high), func(first, count int) error {
		first *= high
		return m.Launch(Launch{
			Kernel: kernel, Grid: [3]int{ceil(n, wide), count, 1}, Threads: threads,
			Args: []Arg{
				ptr(x.At(first*c, of.Size())), ptr(w), ptr(bias), ptr(y.At(first*n, 4)), i32(min(rows-first, count*high)), i32(n), i32(c), flag(add),
			},
		})
	})
}

// LinearScratch is the bytes that Linear needs beside its operands; it may be 0.
func LinearScratch(t, of DType, rows, n, c int) int {
	if t == F32 {
		return 0
	}
	return TilingOf(rows, n, c).Scratch(of, rows, n, c)
}

// Tiling is how a product of bfloat16 is cut up for a launch. The bits of the result do
// not depend on it: see linear_bf16.cu.
type Tiling struct {
	// Rows and Columns are those of y that a block computes: 16 by 8, 16 or 32; 64 by 64;
	// or 128 by 128.
	Rows, Columns int
	// Parts is how many blocks share the chains of a tile's sums, from 1 to LinearChains.
	// Tiles of 16 rows have 1: there each warp has a chain.
	Parts int
}

const (
	// FewRows is how many a product takes in about the time in which W is read.
	FewRows     = 16
	linearBlock = 32 // BLOCK of linear_bf16.cu
	// LinearChains is how many sums an element of a product of bfloat16 is cut into.
	LinearChains = 8
	// fullGrid is how many blocks occupy a GPU. The large ones have 108 (A100) to 148
	// multiprocessors (B200).
	fullGrid = 128
)

// TilingOf is the tiling for a shape. Up to 16 rows a product takes the time in which W is
// read, for which tiles must be many; from then on that of the tensor cores, for which
// they must be large.
func TilingOf(rows, n, c int) Tiling {
	tiles := func(r, c int) int { return ceil(rows, r) * ceil(n, c) }
	switch {
	case rows <= 4 && n <= 16*fullGrid:
		return Tiling{16, 8, 1}
	case rows <= FewRows && n <= 32*fullGrid:
		return Tiling{16, 16, 1}
	case rows <= FewRows:
		return Tiling{16, 32, 1}
	case rows > 64 && tiles(128, 128) >= fullGrid:
		return Tiling{128, 128, 1}
	}
	parts := 1
	if blocksOf(c) >= longSum {
		parts = max(1, min(fullGrid/tiles(64, 64), chainsOf(c)))
	}
	return Tiling{64, 64, parts}
}

// longSum is from how many blocks of columns on a tile's sums are shared: less than half
// of that takes the time of what sharing adds, a launch and the traffic of the chains'
// sums, at 4 µs and 0.15 µs a block. Both are estimates.
const longSum = 64

// chainsOf is how many of the chains have columns, and blocksOf how many blocks those have.
func chainsOf(c int) int { return ceil(blocksOf(c), ceil(blocksOf(c), LinearChains)) }
func blocksOf(c int) int { return ceil(c, linearBlock) }

// Scratch is the bytes that Linear needs beside its operands: for x in bfloat16, unless it
// is that, and for the chains' sums where several blocks share a tile's.
func (t Tiling) Scratch(of DType, rows, n, c int) (bytes int) {
	if t.Rows == 16 {
		return 0
	}
	if of == F32 {
		bytes = rows * blocksOf(c) * linearBlock * 2
	}
	if t.Parts > 1 {
		bytes += chainsOf(c) * rows * n * 4
	}
	return bytes
}

// Linear is cuda.Linear of BF16, with this tiling. scratch begins at a multiple of 16.
func (t Tiling) Linear(m Machine, of DType, x, w, bias, y Pointer, rows, n, c int, add bool, scratch Pointer) error {
	check("Linear", rows > 0 && n > 0 && c > 0, "[%d, %d] by [%d, %d]", rows, c, n, c)
	name := fmt.Sprintf("linear_bf16_%dx%d", t.Rows, t.Columns)
	if t.Rows == 16 {
		if of == BF16 {
			name += "_bf16"
		}
		return linearTiles(m, name, t.Rows, t.Columns, 32*LinearChains, of, x, w, bias, y, rows, n, c, add)
	}
	check("Linear", scratch%16 == 0 && (scratch != 0 || t.Scratch(of, rows, n, c) == 0), "scratch at %#x", scratch)
	width := c
	if of == F32 {
		width = blocksOf(c) * linearBlock
		err := eachRows(rows, func(first, count int) error {
			return m.Launch(Launch{
				Kernel: "linear_round", Grid: [3]int{ceil(width, 8*maxThreads), count, 1}, Threads: maxThreads,
				Args: []Arg{ptr(x.At(first*c, 4)), ptr(scratch.At(first*width, 2)), i32(c), i32(width)},
			})
		})
		if err != nil {
			return err
		}
		x, scratch = scratch, scratch.At(rows*width, 2)
	}
	chains, share, part := chainsOf(c), LinearChains, Pointer(0)
	if t.Parts > 1 {
		share, part = ceil(chains, t.Parts), scratch
	}
	err := m.Launch(Launch{
		Kernel: name, Grid: [3]int{ceil(rows, t.Rows) * ceil(n, t.Columns), ceil(chains, share), 1}, Threads: map[int]int{64: 128, 128: 256}[t.Rows],
		Args: []Arg{
			ptr(x), i32(width), ptr(w), ptr(bias), ptr(y), i32(rows), i32(n), i32(c), flag(add), ptr(part), i32(share),
		},
	})
	if err != nil || t.Parts == 1 {
		return err
	}
	check("Linear", rows <= maxRows, "%d rows in %d parts", rows, t.Parts)
	return m.Launch(Launch{
		Kernel: "linear_join", Grid: [3]int{ceil(n, maxThreads), rows, 1}, Threads: maxThreads,
		Args: []Arg{ptr(part), ptr(bias), ptr(y), i32(rows), i32(n), i32(chains), flag(add)},
	})
}

func flag(set bool) Arg { return i32(map[bool]int{true: 1}[set]) }
