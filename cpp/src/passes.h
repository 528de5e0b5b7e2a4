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

// Whether all of `size` values are below infinity.
bool AreNumbers(const float* values, std::size_t size);

// The maximum of each group of blocks that lie where `values` says, and of all.
float GroupMaxima(const float* const* values, std::size_t blocks, float* maxima);

// The maximum of each group's values below `bound`, which are not negative; 0 where it has none.
void GroupMaximaBelow(float bound, const float* values, std::size_t blocks, float* maxima);

// How many of `size` values are from `bound` up.
std::size_t CountFrom(float bound, const float* values, std::size_t size);

// 2^((value - best) * exponent) in place of each value, which is at most `best`.
void Exponentials(float* values, std::size_t size, float best, float exponent);

// The same of blocks that lie where `values` says, outside `weights`.
void WeighBlocks(const float* const* values, std::size_t blocks, float best, float exponent,
                 float* weights);

// The sums of such weights of each block.
void BlockSums(const float* const* values, std::size_t blocks, float best, float exponent,
               double* sums);

// The sum of the weights from `bound` up of each block.
void SumsFrom(float bound, const float* weights, std::size_t blocks, const float* maxima,
              double* sums);

// The sum of `size` values.
double Sum(const float* values, std::size_t size);

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SRC_PASSES_H_
