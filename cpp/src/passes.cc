#include "passes.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

// Each pass is compiled for several widths, and the dynamic linker takes the widest that the CPU
// has. All of them round alike, since none fuses products with sums.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define RWKV_WORLD_PASS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define RWKV_WORLD_PASS
#endif

namespace rwkv_world {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Lanes = std::array<float, kLanes>;

template <typename To, typename From>
inline To Bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// 2^x for x at most 0: off by 2e-7 at most, and 0 from x = -125 down.
inline float Exp2(float x) {
  // Adding it leaves the nearest whole number in the lowest bits.
  constexpr float kRounder = 0x1.8p23F;
  const float shifted = x + kRounder;
  const float part = x - (shifted - kRounder);
  // The polynomial of this degree whose largest relative error from -1/2 to 1/2 is the least.
  float power = 0.001326472731307149F;
  power = power * part + 0.009671512991189957F;
  power = power * part + 0.05550733581185341F;
  power = power * part + 0.24022242426872253F;
  power = power * part + 0.6931470036506653F;
  power = power * part + 1.0F;
  const uint32_t scaled = Bits<uint32_t>(power) + (Bits<uint32_t>(shifted) << 23);
  const uint32_t counts = x > -125.0F ? ~uint32_t{0} : 0;
  return Bits<float>(scaled & counts);
}

inline double SumOfLanes(const Lanes& lanes) {
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return sum;
}

inline double SumOfBlock(const float* block) {
  Lanes lanes{};
  for (std::size_t row = 0; row < kBlock; row += kLanes) {
    for (std::size_t i = 0; i < kLanes; ++i) lanes[i] += block[row + i];
  }
  return SumOfLanes(lanes);
}

}  // namespace

RWKV_WORLD_PASS
bool CopyNumbers(const float* __restrict values, std::size_t size, float* __restrict copy) {
  std::array<uint32_t, kLanes> faults{};
  std::size_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      copy[i + j] = values[i + j];
      faults[j] |= values[i + j] < kInfinity ? 0 : ~uint32_t{0};
    }
  }
  for (; i < size; ++i) {
    copy[i] = values[i];
    faults[0] |= values[i] < kInfinity ? 0 : ~uint32_t{0};
  }
  uint32_t fault = 0;
  for (const uint32_t lane : faults) fault |= lane;
  return fault == 0;
}

RWKV_WORLD_PASS
float GroupMaxima(const float* __restrict values, std::size_t blocks, float* __restrict maxima) {
  for (std::size_t block = 0; block < blocks; ++block) {
    for (std::size_t i = 0; i < kLanes; ++i) {
      const float* const column = values + block * kBlock + i;
      float maximum = column[0];
      for (std::size_t row = kLanes; row < kBlock; row += kLanes) {
        maximum = column[row] > maximum ? column[row] : maximum;
      }
      maxima[block * kLanes + i] = maximum;
    }
  }
  Lanes lanes;
  for (std::size_t i = 0; i < kLanes; ++i) {
    float maximum = maxima[i];
    for (std::size_t j = i; j < blocks * kLanes; j += kLanes) {
      maximum = maxima[j] > maximum ? maxima[j] : maximum;
    }
    lanes[i] = maximum;
  }
  return *std::max_element(lanes.begin(), lanes.end());
}

RWKV_WORLD_PASS
void GroupMaximaBelow(float bound, const float* __restrict values, std::size_t blocks,
                      float* __restrict maxima) {
  for (std::size_t block = 0; block < blocks; ++block) {
    for (std::size_t i = 0; i < kLanes; ++i) {
      const float* const column = values + block * kBlock + i;
      float maximum = 0;
      for (std::size_t row = 0; row < kBlock; row += kLanes) {
        const float value = column[row] < bound ? column[row] : 0.0F;
        maximum = value > maximum ? value : maximum;
      }
      maxima[block * kLanes + i] = maximum;
    }
  }
}

RWKV_WORLD_PASS
void Exponentials(float* values, std::size_t size, float best, float exponent) {
  for (std::size_t i = 0; i < size; ++i) values[i] = Exp2((values[i] - best) * exponent);
}

RWKV_WORLD_PASS
void WeighBlocks(float* __restrict values, std::size_t blocks, float best, float exponent,
                 double* __restrict sums) {
  for (std::size_t block = 0; block < blocks; ++block) {
    float* const first = values + block * kBlock;
    for (std::size_t i = 0; i < kBlock; ++i) first[i] = Exp2((first[i] - best) * exponent);
    sums[block] = SumOfBlock(first);
  }
}

RWKV_WORLD_PASS
void SumsFrom(float bound, const float* __restrict weights, std::size_t blocks,
              const float* __restrict maxima, double* __restrict sums) {
  for (std::size_t block = 0; block < blocks; ++block) {
    const float* const highest = maxima + block * kLanes;
    uint32_t any = 0;
    for (std::size_t i = 0; i < kLanes; ++i) any |= highest[i] >= bound ? 1 : 0;
    sums[block] = 0;
    if (any == 0) continue;
    const float* const first = weights + block * kBlock;
    Lanes lanes{};
    for (std::size_t row = 0; row < kBlock; row += kLanes) {
      for (std::size_t i = 0; i < kLanes; ++i) {
        lanes[i] += first[row + i] >= bound ? first[row + i] : 0.0F;
      }
    }
    sums[block] = SumOfLanes(lanes);
  }
}

RWKV_WORLD_PASS
double Sum(const float* values, std::size_t size) {
  double sum = 0;
  std::size_t i = 0;
  for (; i + kBlock <= size; i += kBlock) sum += SumOfBlock(values + i);
  for (; i < size; ++i) sum += static_cast<double>(values[i]);
  return sum;
}

}  // namespace rwkv_world
