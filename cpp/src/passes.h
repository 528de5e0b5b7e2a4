// Passes over a row, in loops that compilers turn into vector code.
//
// A block is kLanes columns by kLanes rows of values, row by row. Sums are taken along the columns
// and their order is spelled out, so that the width of a machine's vectors does not matter. A group
// is a column.
#ifndef RWKV_WORLD_SRC_PASSES_H_
#define RWKV_WORLD_SRC_PASSES_H_

#include <cstddef>
#include <cstdint>

namespace rwkv_world {

inline constexpr std::size_t kLanes = 16;
inline constexpr std::size_t kBlock = kLanes * kLanes;

// The words that hold a bit for each value of a block.
inline constexpr std::size_t kWords = kBlock / 32;

// Whether all of a block's values are below infinity.
bool AreNumbers(const float* block);

// The block's values whose bits are 0 become those of `others`.
void Blend(const uint32_t* bits, const float* others, float* block);

// The maximum of each block that lies where `values` says and, unless `exponent` is 0, the sum of
// its values' 2^((value - maximum) * exponent). Whether all values are below infinity.
bool Summarize(const float* const* values, std::size_t blocks, float exponent, float* maxima,
               double* sums);

// The maximum of each group of a block.
void GroupMaxima(const float* block, float* maxima);

// The maximum of each group's values below `bound`, which are not negative; 0 where it has none.
void GroupMaximaBelow(float bound, const float* values, std::size_t blocks, float* maxima);

// 2^((value - best) * exponent) in place of each value, which is at most `best`.
void Exponentials(float* values, std::size_t size, float best, float exponent);

// The same of blocks that lie where `values` says, outside `weights`.
void WeighBlocks(const float* const* values, std::size_t blocks, float best, float exponent,
                 float* weights);

// The sum of the weights from `bound` up of each block.
void SumsFrom(float bound, const float* weights, std::size_t blocks, const float* maxima,
              double* sums);

// The sum of `size` values.
double Sum(const float* values, std::size_t size);

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SRC_PASSES_H_
