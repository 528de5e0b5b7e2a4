// Where to cut off the small values of a set, without sorting all of it.
#ifndef RWKV_WORLD_SRC_SELECTION_H_
#define RWKV_WORLD_SRC_SELECTION_H_

#include <cstddef>

namespace rwkv_world {

// The largest of `count` values, at least one, such that it and all above it sum to `mass` or more;
// the least of all where they do not. The values, none of them negative, change their places.
float LargestBound(float* values, std::size_t count, double mass);

// The same for values that stand in falling order, and stay.
float BoundOfSorted(const float* values, std::size_t count, double mass);

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SRC_SELECTION_H_
