// What every kernel needs, with no header of CUDA's: NVRTC gets this file and the
// kernel's, and the emulator (see ../emulate) compiles both as C++.
//
// Every kernel is deterministic: its sums have an order that depends on the shape
// of a row alone, so that a row has the same bits whatever else is in the launch.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef SSR_EMULATED
#define KERNEL extern "C" __global__
// Shared memory whose size the launch gives.
#define DYNAMIC_SHARED(T, name)                                  \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  T *name = reinterpret_cast<T *>(dynamic_shared)
#endif

#define FULL_WARP 0xffffffffu

// d [16, 8] += a [16, 16] · b [16, 8], by a whole warp on tensor cores: products of
// bfloat16, sums of float (PTX ISA, mma.sync.m16n8k16). A word holds two bfloat16, the
// first in its lower half. With g = lane / 4 and p = 2·(lane % 4), a lane has
//   a: rows g, g + 8, g, g + 8 of columns p, p + 1 (the first two) and p + 8, p + 9;
//   b: rows p, p + 1 and p + 8, p + 9 of column g;
//   d: columns p, p + 1 of row g, then of row g + 8.
// A row of d depends on that row of a alone, and on b.
#ifndef SSR_EMULATED
__device__ inline void mma(float d[4], const u32 a[4], const u32 b[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// bf16 is the upper half of a float.
struct bf16 {
  unsigned short bits;
};

// What a thread loads or stores at once, 16 bytes unless n says otherwise, from an address
// that is a multiple of its size.
template <class T, int n = 16 / sizeof(T)> struct alignas(n * sizeof(T)) Vector {
  T at[n];
};
__device__ inline bool aligned(const void *p, int bytes = 16) { return u64(p) % bytes == 0; }

// pack rounds two floats to a word of bfloat16, the first in its lower half.
// copy_async begins to copy 16 bytes, or zeros unless they are there, to shared memory.
// copies_commit ends a group of copies; copies_wait<n> waits for this thread's, but for
// the last n groups. Other threads see them after a barrier that follows.
#ifndef SSR_EMULATED
__device__ inline u32 pack(float a, float b) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
  return word;
}
__device__ inline void copy_async(void *shared, const void *from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(u32(__cvta_generic_to_shared(shared))), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n> __device__ inline void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory"); }
#endif

__device__ inline float get(const float *p) { return *p; }
__device__ inline float get(const bf16 *p) { return __uint_as_float(u32(p->bits) << 16); }
__device__ inline void put(float *p, float v) { *p = v; }
// Rounds to nearest, ties to even; a NaN stays one.
__device__ inline void put(bf16 *p, float v) {
  u32 u = __float_as_uint(v);
  p->bits = v != v ? (unsigned short)0x7fc0 : (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

__device__ inline float negative_infinity() { return __uint_as_float(0xff800000u); }
__device__ inline bool finite(float x) { return x - x == 0; }

struct Sum {
  template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Max {
  template <class T> __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};

// warp_reduce gives every lane the same result, by the same tree.
template <class T, class Op> __device__ T warp_reduce(T v, Op op) {
  for (int lane = 16; lane > 0; lane /= 2) v = op(v, __shfl_xor_sync(FULL_WARP, v, lane));
  return v;
}

// block_reduce gives every thread the same result. The block has at most 32 whole
// warps, and all its threads call it.
template <class T, class Op> __device__ T block_reduce(T v, Op op) {
  __shared__ T part[32];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  v = warp_reduce(v, op);
  if (threadIdx.x % 32 == 0) part[warp] = v;
  __syncthreads();
  v = part[0];
  for (int i = 1; i < warps; i++) v = op(v, part[i]);
  __syncthreads(); // before part is used again
  return v;
}

// Rows of n elements are loaded and stored four at a time; where they are not `even`, all
// rows at a multiple of four elements, one by one, by the same threads in the same order.
template <class T> __device__ inline bool even(const T *p, int n) { return n % 4 == 0 && aligned(p, 4 * sizeof(T)); }

// get4 loads elements i … i + 3 of n, `beyond` for those that are not there.
template <class T> __device__ inline void get4(float v[4], const T *x, i64 i, i64 n, bool even, float beyond = 0) {
  if (even && i < n) {
    const Vector<T, 4> four = *reinterpret_cast<const Vector<T, 4> *>(x + i);
    for (int k = 0; k < 4; k++) v[k] = get(&four.at[k]);
  } else {
    for (int k = 0; k < 4; k++) v[k] = i + k < n ? get(x + i + k) : beyond;
  }
}
template <class T> __device__ inline void put4(T *x, const float v[4], i64 i, i64 n, bool even) {
  if (even && i < n) {
    Vector<T, 4> four;
    for (int k = 0; k < 4; k++) put(&four.at[k], v[k]);
    *reinterpret_cast<Vector<T, 4> *>(x + i) = four;
  } else {
    for (int k = 0; k < 4; k++)
      if (i + k < n) put(x + i + k, v[k]);
  }
}

// each4 calls f(i, x[i … i + 3]) for all n elements of a row, shared among some threads, each
// in ascending order; x is `beyond` where there is none. Several loads are under way at a
// time: none waits for another's f, nor for a branch of its own.
template <class T, class F>
__device__ inline void each4(const T *x, int n, bool even, float beyond, int thread, int threads, F f) {
  const int ahead = 4, step = threads * 4;
  for (i64 base = thread * 4; base < n; base += ahead * step) {
    float v[ahead][4];
    if (even) {
#pragma unroll
      for (int a = 0; a < ahead; a++) get4(v[a], x, base + a * step, n, true, beyond);
    } else {
#pragma unroll
      for (int a = 0; a < ahead; a++) get4(v[a], x, base + a * step, n, false, beyond);
    }
#pragma unroll
    for (int a = 0; a < ahead; a++)
      if (base + a * step < n) f(int(base) + a * step, v[a]);
  }
}
// The same by a block; beyond the row is -∞.
template <class T, class F> __device__ inline void each4(const T *x, int n, F f) {
  each4(x, n, even(x, n), negative_infinity(), threadIdx.x, blockDim.x, f);
}

// The softmax of a row: its largest element, Σ exp(x - max) and Σ exp(x - max)·(x - max).
struct Softmax {
  double sum, dot;
  float max;
  // rescale is to a larger maximum. The sum's product is spelled out, so that every kernel
  // has the same bits.
  __device__ void rescale(float to) {
    if (sum > 0) {
      const double d = double(max) - double(to), f = exp(d);
      dot = f * (dot + sum * d);
      sum = __dmul_rn(sum, f);
    }
    max = to;
  }
};

// softmax reads a row once, by a block; every thread gets the row's. A NaN makes the sum
// one, and so does +∞.
template <class T> __device__ inline Softmax softmax(const T *x, int n) {
  Softmax s = {0, 0, negative_infinity()};
  each4(x, n, [&](int, const float v[4]) {
    float most = s.max, sum = 0, dot = 0;
    for (int k = 0; k < 4; k++) most = v[k] > most ? v[k] : most;
    if (most > s.max) s.rescale(most);
    for (int k = 0; k < 4; k++) {
      if (v[k] == negative_infinity()) continue;
      const float z = v[k] - s.max, e = expf(z);
      sum += e;
      if (e > 0) dot += e * z;
    }
    s.sum += double(sum);
    s.dot += double(dot);
  });
  s.rescale(block_reduce(s.max, Max()));
  s.sum = block_reduce(s.sum, Sum());
  s.dot = block_reduce(s.dot, Sum());
  return s;
}
