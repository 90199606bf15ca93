// Products of rows with a matrix of bfloat16 on tensor cores, for where a row's bits must
// not depend on the others.
//
// Every element of y is the same sum in the same order, whatever the shape of the launch.
// The C columns of the contraction are blocks of BLOCK (zeros beyond C); the blocks are
// cut into CHAINS stretches of equal length, but for the last ones. A stretch is one chain
// of mma from 0 in ascending order, two a block, and the stretches' sums are added to 0 in
// ascending order. So a chain can be a warp's, a block's, or one after the other.
//
// A thread's 16 bytes of a row are columns 8q … 8q + 7 of a block, q = lane % 4. The first
// mma takes 8q … 8q + 3, the second the rest: what a lane loads is what it multiplies,
// for x as for w. w is the left factor, so that a lane's elements of y are of one column
// and a warp's stores fill sectors.
#include "common.cuh"

#define BLOCK 32
#define CHAINS 8

typedef Vector<u32> Words; // eight bfloat16

// How many blocks a chain has, but for the last ones.
__device__ inline int stretch(int C) { return ((C + BLOCK - 1) / BLOCK + CHAINS - 1) / CHAINS; }

// Blocks [begin, end) of chains [first, last).
struct Blocks {
  int begin, end;
};
__device__ inline Blocks blocks_of(int first, int last, int C) {
  const int all = (C + BLOCK - 1) / BLOCK, begin = first * stretch(C), end = last * stretch(C);
  return {begin < all ? begin : all, end < all ? end : all};
}

// Both mma of a block: d [16, 8] += rows g and g + 8 of w, `low` and `high`, by row g of x.
__device__ inline void multiply(float d[4], const Words &low, const Words &high, const Words &x) {
  for (int i = 0; i < 4; i += 2) {
    const u32 a[4] = {low.at[i], high.at[i], low.at[i + 1], high.at[i + 1]}, b[2] = {x.at[i], x.at[i + 1]};
    mma(d, a, b);
  }
}

// Eight elements of a row of x as they are loaded: the first 8 from p on, of which `left`
// are there, zeros for the rest; rounded is what mma takes. Apart, because a thread that
// rounds waits for what it has loaded.
template <class T> struct Eight;
template <> struct Eight<float> {
  float v[8];
  __device__ void load(const float *p, int left, bool whole) {
    if (whole) {
      for (int half = 0; half < 2; half++) {
        Vector<float> four = {};
        if (4 * half < left) four = *reinterpret_cast<const Vector<float> *>(p + 4 * half);
        for (int i = 0; i < 4; i++) v[4 * half + i] = four.at[i];
      }
    } else {
      for (int i = 0; i < 8; i++) v[i] = i < left ? p[i] : 0;
    }
  }
  __device__ Words rounded() const { return {{pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7])}}; }
};
template <> struct Eight<bf16> {
  Words v;
  __device__ void load(const bf16 *p, int left, bool whole) {
    v = {};
    if (whole) {
      if (left > 0) v = *reinterpret_cast<const Words *>(p);
    } else {
      for (int i = 0; i < 8; i++)
        if (i < left) v.at[i / 2] |= u32(p[i].bits) << 16 * (i % 2);
    }
  }
  __device__ Words rounded() const { return v; }
};

// A thread's walk along a row of a matrix of C columns: the 8 from `column` on of one
// block after the other.
struct Walk {
  const bf16 *at;
  int left; // columns from there on; 0 or less is beyond the matrix, as is a row that is not there
  __device__ void begin(const bf16 *m, i64 row, i64 rows, int column, int C) {
    at = m + row * C + column;
    left = row < rows ? C - column : 0;
  }
  // take copies the 8, zeros beyond the matrix, to shared memory, and steps on:
  // asynchronously where every row is `whole`, at a multiple of 16 bytes, else at once.
  __device__ void take(Words *to, bool whole) {
    if (whole) {
      copy_async(to, at, left > 0);
    } else {
      Eight<bf16> eight;
      eight.load(at, left, false);
      *to = eight.v;
    }
    at += BLOCK;
    left -= BLOCK;
  }
};
__device__ inline bool whole(const bf16 *m, int C) { return aligned(m) && C % 8 == 0; }
__device__ inline bool whole(const float *m, int C) { return aligned(m) && C % 4 == 0; }

// What becomes of an element's sum: y (+)= sum + bias.
struct Output {
  const float *bias; // [N], may be null
  float *y;          // [R, N]
  int R, N, add;
};
__device__ inline void finish(const Output &out, i64 r, i64 n, float sum) {
  if (r >= out.R || n >= out.N) return;
  const float v = out.bias ? sum + out.bias[n] : sum;
  float *y = out.y + r * out.N + n;
  *y = out.add ? *y + v : v;
}

// Up to 16 rows (y) by COLUMNS columns (x): 256 threads, each of the eight warps one
// chain. A warp streams its part of w through a ring of its own in shared memory, where
// each lane reads what it copied itself, and loads the x that it needs.
template <int COLUMNS, class X> __device__ void few(const X *x, const bf16 *w, const Output &out, int C) {
  enum {
    TILES = (COLUMNS + 15) / 16,
    HALVES = COLUMNS < 16 ? 1 : 2, // of a tile that are there
    PIECES = COLUMNS / 8,          // 16 bytes each, of a lane and block
    DEPTH = 12 / PIECES,           // blocks in the ring
    AHEAD = DEPTH < 4 ? DEPTH : 4, // blocks whose x is loaded together
    RESULTS = TILES * HALVES * 4,  // of a lane
  };
  __shared__ Words ring[CHAINS][DEPTH][PIECES][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const i64 first_column = i64(blockIdx.x) * COLUMNS, first_row = i64(blockIdx.y) * 16;
  const bool even = whole(w, C), even_x = whole(x, C);
  const Blocks mine = blocks_of(warp, warp + 1, C);
  const Words zero = {};
  float sum[TILES][2][4] = {}; // [16 columns, 8 rows] each

  Walk from[PIECES];
  for (int p = 0; p < PIECES; p++) from[p].begin(w, first_column + p * 8 + g, out.N, mine.begin * BLOCK + q * 8, C);
  int filled = mine.begin, fill = 0, use = 0; // blocks copied so far; places in the ring
  auto stream = [&]() {
    if (filled++ < mine.end)
#pragma unroll
      for (int p = 0; p < PIECES; p++) from[p].take(&ring[warp][fill][p][lane], even);
    copies_commit();
    fill = fill + 1 < DEPTH ? fill + 1 : 0;
  };
  for (int i = 0; i < DEPTH - 1; i++) stream();
  const X *x_from[2];
  int x_left[2];
  for (int t = 0; t < 2; t++) {
    const i64 r = first_row + t * 8 + g;
    const int c = mine.begin * BLOCK + q * 8;
    x_from[t] = x + r * C + c;
    x_left[t] = r < out.R ? (C < mine.end * BLOCK ? C : mine.end * BLOCK) - c : 0;
  }
  for (int base = mine.begin; base < mine.end; base += AHEAD) {
    Eight<X> rows[AHEAD][2];
    auto get = [&](bool whole) {
#pragma unroll
      for (int i = 0; i < AHEAD; i++)
#pragma unroll
        for (int t = 0; t < 2; t++) rows[i][t].load(x_from[t] + i * BLOCK, x_left[t] - i * BLOCK, whole);
    };
    if (even_x) // one branch for all loads, so that they are under way together
      get(true);
    else
      get(false);
    for (int t = 0; t < 2; t++) {
      x_from[t] += AHEAD * BLOCK;
      x_left[t] -= AHEAD * BLOCK;
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (base + i >= mine.end) break;
      copies_wait<DEPTH - 2>();
      const Words(*piece)[32] = ring[warp][use];
      use = use + 1 < DEPTH ? use + 1 : 0;
#pragma unroll
      for (int t = 0; t < 2; t++) {
        const Words row = rows[i][t].rounded();
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
          multiply(sum[tile][t], piece[tile * 2][lane], HALVES == 2 ? piece[tile * 2 + HALVES - 1][lane] : zero, row);
      }
      stream();
    }
  }
  copies_wait<0>();
  __syncthreads();
  // The chains' sums take the ring's place.
  float *part = reinterpret_cast<float *>(ring); // [CHAINS, RESULTS, 32]
  for (int i = 0; i < RESULTS; i++)
    part[(warp * RESULTS + i) * 32 + lane] = sum[i / (HALVES * 4)][i / 2 % 2][i / 4 % HALVES * 2 + i % 2];
  __syncthreads();
  for (int i = warp; i < RESULTS; i += CHAINS) {
    float total = 0;
    for (int chain = 0; chain < CHAINS; chain++) total += part[(chain * RESULTS + i) * 32 + lane];
    const int tile = i / (HALVES * 4), half = i / 4 % HALVES, t = i / 2 % 2, e = i % 2;
    finish(out, first_row + t * 8 + q * 2 + e, first_column + tile * 16 + half * 8 + g, total);
  }
}

// rounded [R, K] = x [R, C], K = C up to whole blocks, zeros beyond C. A thread eight
// columns (x) of a row (y).
KERNEL void linear_round(const float *x, bf16 *rounded, int C, int K) {
  const int c = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (c >= K) return;
  const i64 row = blockIdx.y;
  Eight<float> eight;
  eight.load(x + row * C + c, C - c, whole(x, C));
  *reinterpret_cast<Words *>(rounded + row * K + c) = eight.rounded();
}

// Tiles of ROWS by COLUMNS, a block each, by ACROSS·DOWN warps that share its columns and
// rows; x [R, K] is of bfloat16, zeros from C on. Both factors go through a ring in shared memory,
// whose rows of 64 bytes a quarter of a warp reads two at a time, from all banks. Where
// part is not null, a block has the chains of its blockIdx.y, `share` of them, whose sums
// go to part [chains, R, N].
template <int ROWS, int COLUMNS, int ACROSS, int DOWN>
__device__ void many(const bf16 *x, int K, const bf16 *w, const Output &out, int C, float *part, int share) {
  enum {
    THREADS = ACROSS * DOWN * 32,
    TILES = COLUMNS / ACROSS / 16, // of a warp, 16 columns each
    PARTS = ROWS / DOWN / 8,       // of a warp, 8 rows each
    PIECES = (ROWS + COLUMNS) * 4, // 16 bytes each, of a block of the contraction
    LEFT = COLUMNS * 4 / THREADS,  // of a thread's pieces, those of w
    DEPTH = (48 << 10) / (PIECES * 16),
    GROUP = 8, // rows of tiles that are computed together, for the L2 cache's sake
  };
  __shared__ Words ring[DEPTH][PIECES]; // w [COLUMNS, BLOCK], then x [ROWS, BLOCK]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int down = (out.R + ROWS - 1) / ROWS, across = (out.N + COLUMNS - 1) / COLUMNS;
  const int tile = blockIdx.x, above = tile / (GROUP * across) * GROUP, height = down - above < GROUP ? down - above : GROUP;
  const i64 first_row = i64(above + (tile - above * across) % height) * ROWS;
  const i64 first_column = i64((tile - above * across) / height) * COLUMNS;
  const int length = stretch(C), chain = blockIdx.y * share;
  const Blocks mine = blocks_of(chain, chain + share, C);
  const bool even = whole(w, C), even_x = whole(x, K);

  Walk from[PIECES / THREADS];
#pragma unroll
  for (int i = 0; i < PIECES / THREADS; i++) {
    const int row = (i * THREADS + threadIdx.x) / 4, column = mine.begin * BLOCK + threadIdx.x % 4 * 8;
    if (i < LEFT)
      from[i].begin(w, first_column + row, out.N, column, C);
    else
      from[i].begin(x, first_row + row - COLUMNS, out.R, column, K);
  }
  int filled = mine.begin, fill = 0, use = 0; // blocks copied so far; places in the ring
  auto stream = [&]() {
    if (filled++ < mine.end)
#pragma unroll
      for (int i = 0; i < PIECES / THREADS; i++) from[i].take(&ring[fill][i * THREADS + threadIdx.x], i < LEFT ? even : even_x);
    copies_commit();
    fill = fill + 1 < DEPTH ? fill + 1 : 0;
  };
  // Where the warp's rows begin in a block's pieces, and its columns.
  const int left = (warp % ACROSS * TILES * 16 + g) * 4 + q, right = (COLUMNS + warp / ACROSS * PARTS * 8 + g) * 4 + q;
  auto row = [&](int j, int e) { return first_row + (warp / ACROSS * PARTS + j) * 8 + q * 2 + e % 2; };
  auto column = [&](int i, int e) { return first_column + (warp % ACROSS * TILES + i) * 16 + e / 2 * 8 + g; };
  float sum[TILES][PARTS][4] = {}, total[TILES][PARTS][4] = {};
  for (int i = 0; i < DEPTH - 1; i++) stream();
  for (int b = mine.begin, end = b + length, now = chain; b < mine.end; b++) {
    copies_wait<DEPTH - 2>();
    __syncthreads(); // and nobody reads any more what is overwritten next
    stream();
    const Words *piece = ring[use];
    use = use + 1 < DEPTH ? use + 1 : 0;
    Words rows[PARTS];
#pragma unroll
    for (int j = 0; j < PARTS; j++) rows[j] = piece[right + j * 8 * 4];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      const Words low = piece[left + i * 16 * 4], high = piece[left + (i * 16 + 8) * 4];
#pragma unroll
      for (int j = 0; j < PARTS; j++) multiply(sum[i][j], low, high, rows[j]);
    }
    if (b + 1 < end && b + 1 < mine.end) continue;
    // The chain is whole.
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int j = 0; j < PARTS; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          if (!part)
            total[i][j][e] += sum[i][j][e];
          else if (row(j, e) < out.R && column(i, e) < out.N)
            part[(now * i64(out.R) + row(j, e)) * out.N + column(i, e)] = sum[i][j][e];
          sum[i][j][e] = 0;
        }
    end += length;
    now++;
  }
  if (part) return;
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int j = 0; j < PARTS; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) finish(out, row(j, e), column(i, e), total[i][j][e]);
}

// y (+)= Σ part [chains, R, N] + bias. A thread an element of a row, 256 columns a block.
KERNEL void linear_join(const float *part, const float *bias, float *y, int R, int N, int chains, int add) {
  const i64 r = blockIdx.y, n = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= N) return;
  float total = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; i++)
    if (i < chains) total += part[(i * i64(R) + r) * N + n];
  finish({bias, y, R, N, add}, r, n, total);
}

KERNEL void linear_bf16_16x8(const float *x, const bf16 *w, const float *bias, float *y, int R, int N, int C, int add) {
  few<8>(x, w, {bias, y, R, N, add}, C);
}
KERNEL void linear_bf16_16x16(const float *x, const bf16 *w, const float *bias, float *y, int R, int N, int C, int add) {
  few<16>(x, w, {bias, y, R, N, add}, C);
}
KERNEL void linear_bf16_16x32(const float *x, const bf16 *w, const float *bias, float *y, int R, int N, int C, int add) {
  few<32>(x, w, {bias, y, R, N, add}, C);
}
KERNEL void linear_bf16_16x8_bf16(const bf16 *x, const bf16 *w, const float *bias, float *y, int R, int N, int C, int add) {
  few<8>(x, w, {bias, y, R, N, add}, C);
}
KERNEL void linear_bf16_16x16_bf16(const bf16 *x, const bf16 *w, const float *bias, float *y, int R, int N, int C, int add) {
  few<16>(x, w, {bias, y, R, N, add}, C);
}
KERNEL void linear_bf16_16x32_bf16(const bf16 *x, const bf16 *w, const float *bias, float *y, int R, int N, int C, int add) {
  few<32>(x, w, {bias, y, R, N, add}, C);
}
KERNEL void linear_bf16_64x64(const bf16 *x, int K, const bf16 *w, const float *bias, float *y, int R, int N, int C, int add, float *part,
                              int share) {
  many<64, 64, 2, 2>(x, K, w, {bias, y, R, N, add}, C, part, share);
}
KERNEL void linear_bf16_128x128(const bf16 *x, int K, const bf16 *w, const float *bias, float *y, int R, int N, int C, int add, float *part,
                                int share) {
  many<128, 128, 4, 2>(x, K, w, {bias, y, R, N, add}, C, part, share);
}
