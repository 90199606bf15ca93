package cuda

// RMSNorm computes y [R, D] = weight∘x / sqrt(mean(x²) + eps). Where residual is
// not 0, it takes x in first, and it is what is normalised: residual += x. rstd
// [R] float32, 1/sqrt(…), may be 0. y is of the type out, all else of t.
func RMSNorm(m Machine, t, out DType, x, residual, weight, y, rstd Pointer, rows, d int, eps float64) error {
	return rmsNorm(m, t, out, x, residual, weight, y, rstd, rows, 1, d, d, eps)
}

// RMSNormHeads normalises in place, each by itself, n adjacent heads of width d in
// rows at a stride of ld elements; x points at the first row's. rstd [n, R] may be 0.
func RMSNormHeads(m Machine, t DType, x, weight, rstd Pointer, rows, n, d, ld int, eps float64) error {
	return rmsNorm(m, t, t, x, 0, weight, x, rstd, rows, n, d, ld, eps)
}

func rmsNorm(m Machine, t, out DType, x, residual, weight, y, rstd Pointer, rows, heads, d, ld int, eps float64) error {
	check("RMSNorm", rows > 0 && heads > 0 && heads <= maxRows && d > 0, "%d rows of %d heads of %d", rows, heads, d)
	// A thread has four elements at a time. Narrow rows are a warp's each.
	across, threads := warps(ceil(d, 4)), warps(ceil(d, 4))
	if d <= warpWidth {
		across, threads = 32, maxThreads
	}
	return m.Launch(Launch{
		Kernel: "rms_norm_" + t.to(out), Grid: [3]int{ceil(rows, threads/across), heads, 1}, Threads: threads,
		Args: []Arg{ptr(x), ptr(residual), ptr(weight), ptr(y), ptr(rstd), i32(rows), i32(d), i32(ld), i32(across), f32(eps)},
	})
}

// warpWidth is the largest width of a row that one warp normalises.
const warpWidth = 256

// maxRows is the largest y or z of a grid.
const maxRows = 65535

// SwiGLU computes y [R, D] of the type out = silu(gate)∘up of rows [gate | up] of width 2D
// of t.
func SwiGLU(m Machine, t, out DType, gateUp, y Pointer, rows, d int) error {
	return eachRows(rows, func(first, n int) error {
		return m.Launch(Launch{
			Kernel: "swiglu_" + t.to(out), Grid: [3]int{ceil(d, 4*maxThreads), n, 1}, Threads: maxThreads,
			Args: []Arg{ptr(gateUp.At(first*2*d, t.Size())), ptr(y.At(first*d, out.Size())), i32(d)},
		})
	})
}

// SwiGLUBackward replaces rows [gate | up] by their gradient, given dy [R, D].
func SwiGLUBackward(m Machine, t DType, gateUp, dy Pointer, rows, d int) error {
	return eachRows(rows, func(first, n int) error {
		return m.Launch(Launch{
			Kernel: "swiglu_backward_" + t.String(), Grid: [3]int{ceil(d, 4*maxThreads), n, 1}, Threads: maxThreads,
			Args: []Arg{ptr(gateUp.At(first*2*d, t.Size())), ptr(dy.At(first*d, t.Size())), i32(d)},
		})
	})
}

// eachRows splits rows into as many as one grid holds.
func eachRows(rows int, f func(first, n int) error) error {
	for first := 0; first < rows; first += maxRows {
		if err := f(first, min(maxRows, rows-first)); err != nil {
			return err
		}
	}
	return nil
}
