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

struct alignas(4) half2 {
  half x, y;
};
using __half2 = half2;
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline half2 __half2half2(half x) { return {x, x}; }
inline half2 __float2half2_rn(float x) { return {half(x), half(x)}; }
inline half2 __hadd2(half2 a, half2 b) { return {a.x + b.x, a.y + b.y}; }
inline half2 __hmul2(half2 a, half2 b) { return {a.x * b.x, a.y * b.y}; }
// One rounding, of what a double holds.
inline half __hfma(half a, half b, half c) {
  return half(double(float(a)) * double(float(b)) + double(float(c)));
}
inline half2 __hfma2(half2 a, half2 b, half2 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
