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
// So many blocks ahead values are fetched: they lie where other cores' threads left them.
constexpr std::size_t kAhead = 6;
// So many blocks are looked at together, so that none waits for what the one before computes.
constexpr std::size_t kTogether = 4;

inline void Prefetch(const float* place) {
#if defined(__GNUC__)
  __builtin_prefetch(place);
#else
  static_cast<void>(place);
#endif
}

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

// By halves: one after the other, each sum would wait for the one before.
inline double SumOfLanes(const Lanes& lanes) {
  std::array<double, kLanes / 2> sums;
  for (std::size_t i = 0; i < kLanes / 2; ++i) {
    sums[i] = static_cast<double>(lanes[i]) + static_cast<double>(lanes[i + kLanes / 2]);
  }
  for (std::size_t half = kLanes / 4; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

inline double SumOfBlock(const float* block) {
  Lanes lanes{};
  for (std::size_t row = 0; row < kBlock; row += kLanes) {
    for (std::size_t i = 0; i < kLanes; ++i) lanes[i] += block[row + i];
  }
  return SumOfLanes(lanes);
}

// By halves, as in SumOfLanes.
template <std::size_t half>
inline void Fold(float* values) {
  for (std::size_t i = 0; i < half; ++i) {
    values[i] = values[i] > values[i + half] ? values[i] : values[i + half];
  }
}

inline void MaximaOfBlock(const float* __restrict block, float* __restrict maxima) {
  for (std::size_t i = 0; i < kLanes; ++i) {
    float maximum = block[i];
    for (std::size_t row = kLanes; row < kBlock; row += kLanes) {
      maximum = block[row + i] > maximum ? block[row + i] : maximum;
    }
    maxima[i] = maximum;
  }
}

inline float MaximumOfLanes(Lanes lanes) {
  Fold<8>(lanes.data());
  Fold<4>(lanes.data());
  Fold<2>(lanes.data());
  Fold<1>(lanes.data());
  return lanes[0];
}

}  // namespace

RWKV_WORLD_PASS
bool AreNumbers(const float* block) {
  uint32_t faults = 0;
  for (std::size_t i = 0; i < kBlock; ++i) faults |= block[i] < kInfinity ? 0 : 1;
  return faults == 0;
}

RWKV_WORLD_PASS
void Blend(const uint32_t* __restrict bits, const float* __restrict others,
           float* __restrict block) {
  for (std::size_t word = 0; word < kWords; ++word) {
    for (std::size_t i = 0; i < 32; ++i) {
      const std::size_t place = word * 32 + i;
      block[place] = (bits[word] >> i & 1) != 0 ? block[place] : others[place];
    }
  }
}

RWKV_WORLD_PASS
bool Summarize(const float* const* __restrict values, std::size_t blocks, float exponent,
               float* __restrict maxima, double* __restrict sums) {
  uint32_t faults = 0;
  for (std::size_t start = 0; start < blocks; start += kTogether) {
    const std::size_t end = std::min(start + kTogether, blocks);
    std::array<Lanes, kTogether> lanes;
    for (std::size_t block = start; block < end; ++block) {
      const float* __restrict const from = values[block];
      for (std::size_t i = 0; i < kBlock; ++i) faults |= from[i] < kInfinity ? 0 : 1;
      MaximaOfBlock(from, lanes[block - start].data());
    }
    for (std::size_t block = start; block < end; ++block) {
      maxima[block] = MaximumOfLanes(lanes[block - start]);
    }
    if (exponent == 0) continue;
    for (std::size_t block = start; block < end; ++block) {
      const float* __restrict const from = values[block];
      const float maximum = maxima[block];
      const float* const ahead = values[std::min(block + kAhead, blocks - 1)];
      for (std::size_t row = 0; row < kBlock; row += kLanes) Prefetch(ahead + row);
      std::array<float, kBlock> weights;
      for (std::size_t i = 0; i < kBlock; ++i) weights[i] = Exp2((from[i] - maximum) * exponent);
      sums[block] = maximum > -kInfinity ? SumOfBlock(weights.data()) : 0;
    }
  }
  return faults == 0;
}

RWKV_WORLD_PASS
void GroupMaxima(const float* block, float* maxima) { MaximaOfBlock(block, maxima); }

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
void WeighBlocks(const float* const* __restrict values, std::size_t blocks, float best,
                 float exponent, float* __restrict weights) {
  for (std::size_t block = 0; block < blocks; ++block) {
    const float* __restrict const from = values[block];
    float* __restrict const to = weights + block * kBlock;
    for (std::size_t i = 0; i < kBlock; ++i) to[i] = Exp2((from[i] - best) * exponent);
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
