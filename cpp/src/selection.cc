#include "selection.h"

#include <algorithm>
#include <functional>

namespace rwkv_world {

float LargestBound(float* values, std::size_t count, double mass) {
  constexpr std::size_t kSorted = 32;
  // Halves are set apart until few are left.
  while (count > kSorted) {
    const std::size_t middle = count / 2;
    std::nth_element(values, values + middle, values + count, std::greater<>());
    double upper = 0;
    for (std::size_t i = 0; i < middle; ++i) upper += static_cast<double>(values[i]);
    if (upper >= mass) {
      count = middle;
    } else {
      values += middle;
      count -= middle;
      mass -= upper;
    }
  }
  std::sort(values, values + count, std::greater<>());
  return BoundOfSorted(values, count, mass);
}

float BoundOfSorted(const float* values, std::size_t count, double mass) {
  double sum = 0;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    sum += static_cast<double>(values[i]);
    if (sum >= mass) return values[i];
  }
  return values[count - 1];
}

}  // namespace rwkv_world
