// The logits of one sequence on their way to a choice.
#ifndef RWKV_WORLD_SRC_ROW_H_
#define RWKV_WORLD_SRC_ROW_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "passes.h"

namespace rwkv_world {

// First Load, then changes of scores, then Rank, which reads each block of logits once, then Weigh.
// What is behind the last score, up to whole blocks, is minus infinity and weighs nothing.
class Row {
 public:
  // Takes `size` logits as scores. They stay where they lie, and have to until the choice is made.
  void Load(const float* logits, std::size_t size);

  // A score to be changed.
  float& operator[](int32_t id);

  // In the end the scores of all ids are minus infinity whose bit in `mask` is 0.
  void Allow(const uint32_t* mask) { mask_ = mask; }

  // Finds the best score, and prepares Weigh unless the temperature is 0. Whether none of the
  // logits is NaN or infinity.
  bool Rank(double temperature);

  // The largest score. What follows needs it to be finite.
  float best() const { return best_; }

  // The lowest id with the largest score.
  int32_t BestId() const;

  // The ids below `usable` with the largest scores, `count` or all, falling; of equals the lower
  // id first.
  std::vector<int32_t> BestIds(std::size_t count, std::size_t usable) const;

  // Scores become weights, e^((score - best) / temperature): 1 for the best, 0 below e^-86. They
  // are off by less than 1e-6 of themselves where they are above e^-16.
  void Weigh();

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
  float Score(int32_t id) const;

  // Begins a block's changes, and makes them, in a copy.
  void Open(std::size_t block);
  void Settle(std::size_t block);

  // The weights of all, reckoned when they are first asked for: many a choice needs but few.
  const float* Weights();

  // Fills likely_ with the weights from a bound up. Whether they are few enough for that.
  bool FindLikely(float from);

  // Whether the weights from `bound` up are all in likely_.
  bool AreLikely(float bound);

  // Weights from `low` up and below `high` go to the front of picked_, in any order; how many.
  std::size_t Pick(float low, float high);

  // Weights of that kind among some that stand at equal distances, the largest first.
  std::vector<float> Sample(float low, float high);

  // The sum of the weights from `bound` up; unless they are likely, those of blocks go to kept_.
  double Keep(float bound);

  // Draw by the weights of some ids, and by those of all.
  int32_t DrawLikely(float bound, double uniform);
  int32_t DrawAny(float bound, double uniform);

  const float* logits_ = nullptr;
  const uint32_t* mask_ = nullptr;
  std::size_t size_ = 0;
  float best_ = 0;
  float exponent_ = 0;                // a weight is 2^((score - best_) * exponent_)
  std::vector<const float*> scores_;  // of each block: among the logits, in last_ or in changed_
  std::array<float, kBlock> last_;    // the logits of a block that is not whole
  std::vector<float> changed_;
  std::vector<uint32_t> is_changed_;  // a bit for each score of those blocks
  std::vector<std::size_t> changed_blocks_;
  std::vector<bool> has_changes_;  // of each block
  std::vector<float> weights_;
  bool weights_are_known_ = false;
  std::vector<float> likely_;  // weights by rising ids, so many of them
  std::vector<int32_t> likely_ids_;
  std::size_t likely_count_ = 0;
  float likely_from_ = 0;         // the bound; above all weights where there are none
  bool likely_are_many_ = false;  // too many, of the bound that is tried first
  std::vector<float> maxima_;     // with weights_: the largest of each group
  std::vector<float> tops_;       // the largest score of each block; behind Weigh its weight
  std::vector<double> sums_;      // of the weights of each block; before Weigh, beside its own top
  std::vector<double> kept_;      // of those from some bound up
  std::vector<float> picked_;
  std::vector<float> highest_;  // of each group or block: a maximum of some of its values
};

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SRC_ROW_H_
