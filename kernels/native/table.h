// What every instruction set fills in, and the headers its kernels need
// (included before any target pragma, so that library code stays portable).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "api.h"

#define SSR_POINTER(R, name, F, params, args) R(*name##_##F) params;
struct Table {
  SSR_KERNELS(float, SSR_POINTER)
  SSR_KERNELS(double, SSR_POINTER)
  void (*pack_bfloat16)(const float *, long, long, long, long, uint16_t *);
  void (*linear_bfloat16)(const float *, long, const uint16_t *, const float *, long, long, long, float *, long, int);
  int32_t (*sample)(const float *, long, double, long, double, double, double, float *, float *);
};
