package cuda

import "testing"

// TestTilingOf: decoding gets many tiles and no scratch, long sums of few tiles are shared,
// and large products get large tiles.
func TestTilingOf(t *testing.T) {
	for _, c := range []struct {
		rows, n, c int
		want       Tiling
		scratch    int
	}{
		{1, 896, 4864, Tiling{16, 8, 1}, 0},
		{16, 896, 4864, Tiling{16, 16, 1}, 0},
		{16, 151936, 896, Tiling{16, 32, 1}, 0},
		{64, 896, 4864, Tiling{64, 64, 8}, 64*4864*2 + 8*64*896*4},
		{64, 896, 896, Tiling{64, 64, 1}, 64 * 896 * 2},
		{64, 151936, 900, Tiling{64, 64, 1}, 64 * 928 * 2},
		{256, 896, 4864, Tiling{64, 64, 2}, 256*4864*2 + 8*256*896*4},
		{8192, 896, 4864, Tiling{128, 128, 1}, 8192 * 4864 * 2},
	} {
		got := TilingOf(c.rows, c.n, c.c)
		if got != c.want || got.Scratch(F32, c.rows, c.n, c.c) != c.scratch {
			t.Errorf("%d rows of %d to %d: %+v with %d bytes, want %+v with %d", c.rows, c.c, c.n, got, got.Scratch(F32, c.rows, c.n, c.c), c.want, c.scratch)
		}
	}
	// 41 blocks are seven chains, of six blocks but for the last.
	if got := chainsOf(1300); got != 7 {
		t.Errorf("%d chains of 1300 columns, want 7", got)
	}
}
