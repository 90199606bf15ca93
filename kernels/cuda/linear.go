package cuda

// linearTile is TILE of linear.cu.
const linearTile = 64

// Linear computes y [R, N] = x [R, C] @ Wᵀ + bias, or adds it to y, so that no row
// depends on the others. W is [N, C] of t; x, to be rounded to that, y and bias [N] are
// float32. bias may be 0.
func Linear(m Machine, t DType, x, w, bias, y Pointer, rows, n, c int, add bool) error {
	check("Linear", rows > 0 && n > 0 && c > 0, "[%d, %d] by [%d, %d]", rows, c, n, c)
	flag := map[bool]int{true: 1}[add]
	return eachRows(ceil(rows, linearTile), func(first, count int) error {
		first *= linearTile
		return m.Launch(Launch{
			Kernel: "linear_" + t.String(), Grid: [3]int{ceil(n, linearTile), count, 1}, Threads: 256,
			Args: []Arg{
				ptr(x.At(first*c, 4)), ptr(w), ptr(bias), ptr(y.At(first*n, 4)), i32(min(rows-first, count*linearTile)), i32(n), i32(c), i32(flag),
			},
		})
	})
}
