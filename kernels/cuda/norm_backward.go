package cuda

// normSpan is SPAN of norm_backward.cu.
const normSpan = 64

// RMSNormScratch is the bytes that the gradient of a norm's weight needs.
func RMSNormScratch(rows, heads, d int) int { return ceil(rows*heads, normSpan) * d * 4 }

// RMSNormBackward is the gradient of RMSNorm, and of RMSNormHeads for n adjacent heads of
// width d in rows at a stride of ld elements, in float32: dx, which may be dy, and, unless
// dweight [D] is 0, what is added to that. rstd is [n, R]; scratch is of RMSNormScratch.
func RMSNormBackward(m Machine, x, weight, rstd, dy, dx, dweight, scratch Pointer, rows, n, d, ld int) error {
	check("RMSNormBackward", rows > 0 && n > 0 && n <= maxRows && d > 0, "%d rows of %d heads of %d", rows, n, d)
	if dweight != 0 {
		spans, threads := ceil(rows*n, normSpan), warps(d)
		err := m.Launch(Launch{
			Kernel: "rms_norm_dweight_f32", Grid: [3]int{spans, ceil(d, threads), 1}, Threads: threads,
			Args: []Arg{ptr(x), ptr(rstd), ptr(dy), ptr(scratch), i32(rows), i32(n), i32(d), i32(ld)},
		})
		if err != nil {
			return err
		}
		err = m.Launch(Launch{
			Kernel: "rms_norm_dweight_sum_f32", Grid: [3]int{d, 1, 1}, Threads: maxThreads,
			Args: []Arg{ptr(scratch), i32(spans), i32(d), ptr(dweight)},
		})
		if err != nil {
			return err
		}
	}
	return m.Launch(Launch{
		Kernel: "rms_norm_backward_f32", Grid: [3]int{rows, n, 1}, Threads: warps(d),
		Args: []Arg{ptr(x), ptr(weight), ptr(rstd), ptr(dy), ptr(dx), i32(d), i32(ld)},
	})
}
