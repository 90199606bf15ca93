// CUDA C as C++: what the kernels of ../src use, each thread of a block a fiber of
// one OS thread. A fiber runs until it waits at a barrier or a shuffle; then the
// next one does, in an order that the launch chooses. So every interleaving of
// whole stretches between barriers can be tried, and a kernel that lacks a barrier
// gives different results in different orders.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define SSR_EMULATED
#define KERNEL static
#define __device__
#define __global__ static
// Blocks run one after another, so that a block's shared memory can be static.
#define __shared__ static
#define DYNAMIC_SHARED(T, name) T *name = reinterpret_cast<T *>(emulator::shared)

namespace emulator {

struct Dim {
  unsigned x, y, z;
};

extern Dim thread, block, block_dim, grid_dim; // of the fiber that runs
extern void *shared;

// arrive waits until all threads of the block (or the 32 of the warp) have arrived
// at a barrier of the same kind. A warp's lanes leave a value each and see all 32.
void sync_block();
const uint64_t *exchange(uint32_t mask, uint64_t value);

// Asynchronous copies of common.cuh: done at once in launches of even order, and when
// they are waited for in the others, so that a missing wait, and a copy over what is
// still read, give different results.
void copy_async(void *to, const void *from, bool there);
void copies_commit();
void copies_wait(size_t groups);

template <class T> uint64_t to_bits(T v) {
  static_assert(sizeof(T) <= 8, "");
  uint64_t bits = 0;
  memcpy(&bits, &v, sizeof v);
  return bits;
}
template <class T> T from_bits(uint64_t bits) {
  T v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

} // namespace emulator

#define threadIdx emulator::thread
#define blockIdx emulator::block
#define blockDim emulator::block_dim
#define gridDim emulator::grid_dim

static inline void __syncthreads() { emulator::sync_block(); }
template <class T> T __shfl_sync(uint32_t mask, T v, int from) {
  return emulator::from_bits<T>(emulator::exchange(mask, emulator::to_bits(v))[from & 31]);
}
template <class T> T __shfl_xor_sync(uint32_t mask, T v, int lanes) {
  return __shfl_sync(mask, v, int(threadIdx.x % 32) ^ lanes);
}
// Lanes without a partner keep their own value.
template <class T> T __shfl_up_sync(uint32_t mask, T v, int lanes) {
  const int lane = threadIdx.x % 32;
  return __shfl_sync(mask, v, lane >= lanes ? lane - lanes : lane);
}
static inline int __any_sync(uint32_t mask, int any) {
  const uint64_t *all = emulator::exchange(mask, any != 0);
  for (int lane = 0; lane < 32; lane++)
    if (all[lane]) return 1;
  return 0;
}

template <class T> T atomicAdd(T *p, T v) {
  T old = *p;
  *p += v;
  return old;
}

static inline float __uint_as_float(uint32_t u) { return emulator::from_bits<float>(u); }
static inline uint32_t __float_as_uint(float f) { return uint32_t(emulator::to_bits(f)); }
// Byte i of the result is byte (s >> 4·i) & 7 of a and then b.
static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t s) {
  const uint64_t both = a | uint64_t(b) << 32;
  uint32_t out = 0;
  for (int i = 0; i < 4; i++) out |= uint32_t(both >> 8 * (s >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
}
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

using emulator::copies_commit;
using emulator::copy_async;
template <int n> void copies_wait() { emulator::copies_wait(n); }
static inline uint32_t pack(float a, float b) {
  uint32_t word = 0, bits[2] = {__float_as_uint(a), __float_as_uint(b)};
  for (int i = 0; i < 2; i++) {
    const bool nan = (bits[i] & 0x7fffffff) > 0x7f800000;
    word |= (nan ? 0x7fff : (bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16) << 16 * i;
  }
  return word;
}

// mma of common.cuh, one sum over the columns in ascending order.
static inline void mma(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  uint64_t low[32], high[32], right[32];
  memcpy(low, emulator::exchange(0xffffffffu, a[0] | uint64_t(a[1]) << 32), sizeof low);
  memcpy(high, emulator::exchange(0xffffffffu, a[2] | uint64_t(a[3]) << 32), sizeof high);
  memcpy(right, emulator::exchange(0xffffffffu, b[0] | uint64_t(b[1]) << 32), sizeof right);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; k++) {
      const int pair = k % 8 / 2, upper = k % 2 * 16;
      const uint32_t x = uint32_t((k < 8 ? low : high)[row * 4 + pair] >> (i < 2 ? 0 : 32)) >> upper;
      const uint32_t y = uint32_t(right[column * 4 + pair] >> (k < 8 ? 0 : 32)) >> upper;
      d[i] += __uint_as_float(x << 16) * __uint_as_float(y << 16);
    }
  }
}
