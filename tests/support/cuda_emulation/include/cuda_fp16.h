// float16 as CUDA's header offers it: each operation rounds its float32 result once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
  _Float16 value;
  __half() = default;
  __half(float v) : value(static_cast<_Float16>(v)) {}
  __half(double v) : value(static_cast<_Float16>(v)) {}
  __half(int v) : value(static_cast<_Float16>(v)) {}
  __half(unsigned v) : value(static_cast<_Float16>(v)) {}
  __half(long v) : value(static_cast<_Float16>(v)) {}
  operator float() const { return static_cast<float>(value); }
};
using half = __half;

inline half operator+(half a, half b) { return half(float(a) + float(b)); }
inline half operator-(half a, half b) { return half(float(a) - float(b)); }
inline half operator*(half a, half b) { return half(float(a) * float(b)); }
inline half operator/(half a, half b) { return half(float(a) / float(b)); }
inline half operator-(half a) { return half(-float(a)); }
inline bool operator<(half a, half b) { return float(a) < float(b); }
inline bool operator>(half a, half b) { return float(a) > float(b); }
inline bool operator<=(half a, half b) { return float(a) <= float(b); }
inline bool operator>=(half a, half b) { return float(a) >= float(b); }
inline bool operator==(half a, half b) { return float(a) == float(b); }
inline bool operator!=(half a, half b) { return float(a) != float(b); }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hlt(half a, half b) { return a < b; }
inline float __half2float(half a) { return float(a); }
inline half __float2half(float a) { return half(a); }
inline half __float2half_rn(float a) { return half(a); }
inline half hexp(half a) { return half(std::exp(float(a))); }
inline half hsqrt(half a) { return half(std::sqrt(float(a))); }

struct half2 {
  half x, y;
};
using __half2 = half2;
