// Kernels with faults, to show that the emulator finds them.
#pragma once

// Every thread reads what its neighbour wrote, without a barrier in between.
KERNEL void faulty_race(int *out) {
  __shared__ int value[256];
  value[threadIdx.x] = int(threadIdx.x) + int(blockIdx.x);
  out[blockIdx.x * blockDim.x + threadIdx.x] = value[(threadIdx.x + 1) % blockDim.x];
}

// One thread ends while the others wait for it.
KERNEL void faulty_exit(int *out) {
  if (threadIdx.x == 3) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

// Half of a warp takes part in a shuffle of the whole.
KERNEL void faulty_shuffle(int *out) {
  int v = 0;
  if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, int(threadIdx.x), 1);
  out[threadIdx.x] = v;
}

// What an asynchronous copy brings is read before it is waited for.
KERNEL void faulty_copy(int *out) {
  __shared__ Vector<int> value[64];
  value[threadIdx.x] = {{1, 1, 1, 1}};
  copy_async(&value[threadIdx.x], out, false);
  copies_commit();
  out[blockIdx.x * blockDim.x + threadIdx.x] = value[threadIdx.x].at[0];
}
