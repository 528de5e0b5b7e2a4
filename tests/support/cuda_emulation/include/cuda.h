// What a kernel's source takes for granted, for a block of fibers on a CPU; see engine.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include "engine.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define threadIdx (emulation::current->index)
#define blockIdx (emulation::current->block)
#define __restrict__

#define VECTOR_TYPES(T, name)                                                                  \
  struct name##1 { T x; };                                                                     \
  struct __align__(2 * sizeof(T)) name##2 { T x, y; };                                         \
  struct name##3 { T x, y, z; };                                                               \
  struct __align__(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; };         \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR_TYPES(float, float)
VECTOR_TYPES(int, int)
VECTOR_TYPES(unsigned, uint)
VECTOR_TYPES(unsigned short, ushort)
VECTOR_TYPES(long, longlong)
#undef VECTOR_TYPES

inline void __syncthreads() { emulation::block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulation::warp_barrier(); }
inline unsigned __activemask() { return 0xffffffffu; }

template <typename T>
T __shfl_sync(unsigned, T value, int lane, int = 32) {
  return emulation::exchange(value, [&](int) { return lane & 31; });
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return emulation::exchange(value, [&](int self) { return self ^ mask; });
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int delta, int = 32) {
  return emulation::exchange(value, [&](int self) { return self + delta < 32 ? self + delta : self; });
}

// These may be as inexact as a GPU's; the tests' tolerances allow for that.
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
using std::max;
using std::min;
inline int64_t max(int64_t a, int b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int b) { return a < b ? a : b; }
inline int64_t max(int a, int64_t b) { return a > b ? a : b; }
inline int64_t min(int a, int64_t b) { return a < b ? a : b; }
inline unsigned __float_as_uint(float x) { unsigned y; std::memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned x) { float y; std::memcpy(&y, &x, 4); return y; }

// Bytes of both words, of which each nibble of `select` names one; the highest bit of a nibble, which
// spreads a sign, is not used.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned select) {
  if (select & 0xffff8888u) std::abort();
  const uint64_t both = uint64_t(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(both >> (select >> i * 4 & 7) * 8 & 255) << i * 8;
  return result;
}
template <typename T>
unsigned __cvta_generic_to_shared(T* pointer) {
  return emulation::shared_address(pointer);
}

#include "cuda_fp16.h"
#include "ptx.h"
