// The logits of one sequence on their way to a choice.
#ifndef RWKV_WORLD_SRC_ROW_H_
#define RWKV_WORLD_SRC_ROW_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rwkv_world {

// First Load, then changes of scores, then Best; then Weigh turns scores into weights. What is
// behind the last score, up to whole blocks, is minus infinity and weighs nothing.
class Row {
 public:
  // Takes over `size` logits as scores. Whether none of them is NaN or infinity.
  bool Load(const float* logits, std::size_t size);

  float& operator[](int32_t id) { return values_[static_cast<std::size_t>(id)]; }

  // Puts the scores of all ids to minus infinity whose bit in `mask` is 0.
  void Allow(const uint32_t* mask);

  // The largest score. What follows needs it to be finite.
  float Best();

  // The lowest id with the largest score.
  int32_t BestId() const;

  // The ids below `usable` with the largest scores, `count` or all, falling; of equals the lower
  // id first.
  std::vector<int32_t> BestIds(std::size_t count, std::size_t usable) const;

  // Scores become weights, e^((score - best) / temperature): 1 for the best, 0 below e^-86. They
  // are off by less than 1e-6 of themselves where they are above e^-16.
  void Weigh(double temperature);

  // The sum of all weights.
  double Total() const;

  // The count-th largest weight, or a smaller one where fewer are above 0.
  float CountBound(std::size_t count);

  // The largest weight such that it and all above it are `share` of all from `least` up.
  float MassBound(double share, float least);

  // An id, by the weights from `bound` up: the first one up to which they sum to more than
  // `uniform` times their total.
  int32_t Draw(float bound, double uniform);

 private:
  // Weights from `low` up and below `high` go to the front of picked_, in any order; how many.
  std::size_t Pick(float low, float high);

  // Weights of that kind among some that stand at equal distances, the largest first.
  std::vector<float> Sample(float low, float high) const;

  // Sums of the weights from `bound` up go to kept_; their total.
  double Keep(float bound);

  std::size_t size_ = 0;
  float best_ = 0;
  std::vector<float> values_;  // scores, then weights
  // The largest value of each group of values; as weights no less than it, and hardly more.
  std::vector<float> maxima_;
  std::vector<double> sums_;  // of the weights of each block
  std::vector<double> kept_;  // of those from some bound up
  std::vector<float> picked_;
  std::vector<float> highest_;  // of each group: a maximum of some of its values
};

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SRC_ROW_H_
