#include "row.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "passes.h"
#include "selection.h"

namespace rwkv_world {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
// Above every weight.
constexpr float kAbove = 2;
constexpr double kLog2E = 1.4426950408889634;

// The least weight that counts: the smallest float whose arithmetic is exact.
constexpr float kLeast = std::numeric_limits<float>::min();

// Nearly always the tokens that count are from here up.
constexpr float kLikely = 0x1p-6F;
// By so much the logarithms of equal weights differ at most.
constexpr float kPowerRounding = 0.001F;

// Where so few groups have such, all that count are taken out at once.
constexpr std::size_t kFewGroups = 512;

// So many weights are looked at one by one.
constexpr double kFew = 512;
constexpr std::size_t kSample = 128;

// A rounded power may be less than that of a smaller score, by its last bits.
constexpr float kAtLeast = 1 + 0x1p-20F;

}  // namespace

void Row::Load(const float* logits, std::size_t size) {
  const std::size_t blocks = (size + kBlock - 1) / kBlock;
  logits_ = logits;
  mask_ = nullptr;
  size_ = size;
  scores_.resize(blocks);
  changed_.resize(blocks * kBlock);
  is_changed_.resize(blocks * kWords);
  changed_blocks_.clear();
  has_changes_.assign(blocks, false);
  last_.fill(kNever);
  weights_.resize(blocks * kBlock);
  maxima_.resize(blocks * kLanes);
  tops_.resize(blocks);
  sums_.resize(blocks);
  kept_.resize(blocks);
  highest_.reserve(blocks * kLanes);
  // One more than there can be, see Pick and FindLikely.
  picked_.resize(blocks * kBlock + 1);
  likely_ids_.resize(std::min(kFewGroups, blocks * kLanes) * kLanes + 1);
  likely_.resize(likely_ids_.size());
  for (std::size_t block = 0; block < blocks; ++block) scores_[block] = logits + block * kBlock;
  // There may be no more behind the last logit.
  if (size % kBlock != 0) {
    std::copy(scores_.back(), logits + size, last_.begin());
    scores_.back() = last_.data();
  }
}

float& Row::operator[](int32_t id) {
  const auto place = static_cast<std::size_t>(id);
  if (!has_changes_[place / kBlock]) Open(place / kBlock);
  const uint32_t bit = uint32_t{1} << place % 32;
  if ((is_changed_[place / 32] & bit) == 0) {
    is_changed_[place / 32] |= bit;
    changed_[place] = logits_[place];
  }
  return changed_[place];
}

void Row::Open(std::size_t block) {
  has_changes_[block] = true;
  changed_blocks_.push_back(block);
  std::fill_n(&is_changed_[block * kWords], kWords, 0);
}

void Row::Settle(std::size_t block) {
  float* const changed = changed_.data() + block * kBlock;
  Blend(&is_changed_[block * kWords], scores_[block], changed);
  scores_[block] = changed;
  if (mask_ == nullptr) return;
  static const std::vector<float> never(kBlock, kNever);
  std::array<uint32_t, kWords> allowed{};
  const std::size_t words = std::min(kWords, (size_ + 31) / 32 - block * kWords);
  std::copy_n(mask_ + block * kWords, words, allowed.begin());
  Blend(allowed.data(), never.data(), changed);
}

float Row::Score(int32_t id) const {
  const auto place = static_cast<std::size_t>(id);
  return scores_[place / kBlock][place % kBlock];
}

bool Row::Rank(double temperature) {
  // However hot, it is not 0, at which nothing is summed.
  exponent_ = temperature > 0 ? std::max(static_cast<float>(kLog2E / temperature), kLeast) : 0;
  bool are_numbers = true;
  if (mask_ != nullptr) {
    for (std::size_t block = 0; block < scores_.size(); ++block) {
      if (!has_changes_[block]) Open(block);
    }
  }
  for (const std::size_t block : changed_blocks_) {
    are_numbers = AreNumbers(scores_[block]) && are_numbers;
    Settle(block);
  }
  are_numbers = Summarize(scores_.data(), scores_.size(), exponent_, tops_.data(), sums_.data()) &&
                are_numbers;
  best_ = *std::max_element(tops_.begin(), tops_.end());
  return are_numbers;
}

int32_t Row::BestId() const {
  const auto block =
      static_cast<std::size_t>(std::find(tops_.begin(), tops_.end(), best_) - tops_.begin());
  const float* const scores = scores_[block];
  const auto place = static_cast<std::size_t>(std::find(scores, scores + kBlock, best_) - scores);
  return static_cast<int32_t>(block * kBlock + place);
}

std::vector<int32_t> Row::BestIds(std::size_t count, std::size_t usable) const {
  std::vector<int32_t> ids;
  const auto better = [this](int32_t a, int32_t b) {
    const float left = Score(a);
    const float right = Score(b);
    return left != right ? left > right : a < b;
  };
  count = std::min(count, usable);
  if (count == 0) return ids;
  // A heap with the worst of the best so far on top.
  for (std::size_t start = 0; start < usable; start += kBlock) {
    if (ids.size() == count && tops_[start / kBlock] <= Score(ids[0])) continue;
    for (std::size_t i = start; i < std::min(start + kBlock, usable); ++i) {
      const auto id = static_cast<int32_t>(i);
      if (ids.size() == count) {
        if (!better(id, ids[0])) continue;
        std::pop_heap(ids.begin(), ids.end(), better);
        ids.pop_back();
      }
      ids.push_back(id);
      std::push_heap(ids.begin(), ids.end(), better);
    }
  }
  std::sort_heap(ids.begin(), ids.end(), better);
  return ids;
}

void Row::Weigh() {
  Exponentials(tops_.data(), tops_.size(), best_, exponent_);
  for (std::size_t block = 0; block < tops_.size(); ++block) {
    sums_[block] *= static_cast<double>(tops_[block]);
  }
  weights_are_known_ = false;
  likely_from_ = kAbove;
  likely_are_many_ = false;
}

const float* Row::Weights() {
  if (!weights_are_known_) {
    WeighBlocks(scores_.data(), scores_.size(), best_, exponent_, weights_.data());
    GroupMaximaBelow(kAbove, weights_.data(), scores_.size(), maxima_.data());
    weights_are_known_ = true;
  }
  return weights_.data();
}

bool Row::FindLikely(float from) {
  const float least = std::log2(from) - kPowerRounding;
  const auto may_be = [least, best = best_, exponent = exponent_](float score) {
    return (score - best) * exponent >= least;
  };
  likely_from_ = kAbove;
  // In locals, since what is written might be any member.
  int32_t* const ids = likely_ids_.data();
  float* const likely = likely_.data();
  std::size_t count = 0, groups = 0;
  for (std::size_t block = 0; block < tops_.size(); ++block) {
    if (tops_[block] < from / kAtLeast) continue;
    std::array<float, kLanes> highest;
    const float* const scores = scores_[block];
    GroupMaxima(scores, highest.data());
    std::array<std::size_t, kLanes + 1> columns;
    std::size_t here = 0;
    for (std::size_t i = 0; i < kLanes; ++i) {
      columns[here] = i;
      here += may_be(highest[i]) ? std::size_t{1} : 0;
    }
    groups += here;
    if (groups > kFewGroups) return false;
    for (std::size_t row = 0; row < kBlock; row += kLanes) {
      for (std::size_t i = 0; i < here; ++i) {
        const std::size_t place = row + columns[i];
        // As in Pick: written before it is known to count.
        ids[count] = static_cast<int32_t>(block * kBlock + place);
        likely[count] = scores[place];
        count += may_be(scores[place]) ? std::size_t{1} : 0;
      }
    }
  }
  Exponentials(likely, count, best_, exponent_);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const float weight = likely[i];
    ids[kept] = ids[i];
    likely[kept] = weight;
    kept += weight >= from ? std::size_t{1} : 0;
  }
  likely_count_ = kept;
  likely_from_ = from;
  return true;
}

bool Row::AreLikely(float bound) {
  if (bound >= likely_from_) return true;
  if (bound < kLikely || likely_are_many_) return false;
  likely_are_many_ = !FindLikely(kLikely);
  return !likely_are_many_;
}

double Row::Total() const { return std::accumulate(sums_.begin(), sums_.end(), 0.0); }

std::size_t Row::Pick(float low, float high) {
  if (AreLikely(low)) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < likely_count_; ++i) {
      if (likely_[i] >= low && likely_[i] < high) picked_[count++] = likely_[i];
    }
    return count;
  }
  const float* const weights = Weights();
  const float* highest = maxima_.data();
  if (high <= 1) {
    highest_.resize(maxima_.size());
    GroupMaximaBelow(high, weights, sums_.size(), highest_.data());
    highest = highest_.data();
  }
  std::size_t count = 0;
  for (std::size_t group = 0; group < maxima_.size(); ++group) {
    if (highest[group] < low) continue;
    const float* value = weights + group / kLanes * kBlock + group % kLanes;
    for (std::size_t row = 0; row < kLanes; ++row, value += kLanes) {
      // Written before it is known to count: a branch would take longer.
      picked_[count] = *value;
      count += *value >= low && *value < high ? std::size_t{1} : 0;
    }
  }
  return count;
}

std::vector<float> Row::Sample(float low, float high) {
  const float* const weights = Weights();
  std::vector<float> sample;
  for (std::size_t i = 0; i < kSample; ++i) {
    const float weight = weights[i * size_ / kSample];
    if (weight > low && weight < high) sample.push_back(weight);
  }
  std::sort(sample.begin(), sample.end(), std::greater<>());
  return sample;
}

double Row::Keep(float bound) {
  if (AreLikely(bound)) {
    double total = 0;
    for (std::size_t i = 0; i < likely_count_; ++i) {
      if (likely_[i] >= bound) total += static_cast<double>(likely_[i]);
    }
    return total;
  }
  if (bound <= kLeast) {
    kept_ = sums_;
  } else {
    const float* const weights = Weights();
    SumsFrom(bound, weights, sums_.size(), maxima_.data(), kept_.data());
  }
  return std::accumulate(kept_.begin(), kept_.end(), 0.0);
}

float Row::CountBound(std::size_t count) {
  // Of so many blocks or groups each has a weight that is no less.
  const auto nth_largest = [this, count](const std::vector<float>& maxima) {
    if (count > maxima.size()) return kLeast;
    highest_ = maxima;
    const auto nth = highest_.begin() + static_cast<std::ptrdiff_t>(count - 1);
    std::nth_element(highest_.begin(), nth, highest_.end(), std::greater<>());
    return std::max(*nth, kLeast);
  };
  float low = nth_largest(tops_);
  if (!FindLikely(low)) {
    Weights();
    low = nth_largest(maxima_);
  }
  const std::size_t picked = Pick(low, kAbove);
  const auto first = picked_.begin();
  const auto nth = first + static_cast<std::ptrdiff_t>(std::min(count, picked) - 1);
  std::nth_element(first, nth, first + static_cast<std::ptrdiff_t>(picked), std::greater<>());
  return *nth;
}

float Row::MassBound(double share, float least) {
  // The bound is from `low` up and below `high`. The masses are of the weights from each up.
  float low = least, high = kAbove;
  double low_mass = Keep(least), high_mass = 0;
  const double mass = share * low_mass;
  const auto narrow = [&](float bound) {
    const double bound_mass = Keep(bound);
    if (bound_mass >= mass) {
      low = bound;
      low_mass = bound_mass;
    } else {
      high = bound;
      high_mass = bound_mass;
    }
  };
  const auto few = [&] {
    return AreLikely(low) || low_mass - high_mass <= kFew * static_cast<double>(low);
  };
  if (low < kLikely) narrow(kLikely);
  // Passes over the whole row, which are cheap, until few weights are left. A sample tells where.
  std::vector<float> sample;
  if (!few()) sample = Sample(low, high);
  while (!few() && !sample.empty()) {
    const double there = (mass - high_mass) / (low_mass - high_mass);
    // Nearer to the middle than the bound is held to be, so that a guess seldom is off by little.
    const double place = 0.5 + 0.8 * (there - 0.5);
    const double total = std::accumulate(sample.begin(), sample.end(), 0.0);
    narrow(BoundOfSorted(sample.data(), sample.size(), place * total));
    const auto outside = [&](float weight) { return weight <= low || weight >= high; };
    sample.erase(std::remove_if(sample.begin(), sample.end(), outside), sample.end());
  }
  const std::size_t count = Pick(low, high);
  return LargestBound(picked_.data(), count, mass - high_mass);
}

int32_t Row::Draw(float bound, double uniform) {
  return AreLikely(bound) ? DrawLikely(bound, uniform) : DrawAny(bound, uniform);
}

int32_t Row::DrawLikely(float bound, double uniform) {
  double target = uniform * Keep(bound);
  // Rounding may put the target behind the last weight.
  int32_t chosen = 0;
  for (std::size_t i = 0; i < likely_count_; ++i) {
    if (likely_[i] < bound) continue;
    chosen = likely_ids_[i];
    if (target < static_cast<double>(likely_[i])) break;
    target -= static_cast<double>(likely_[i]);
  }
  return chosen;
}

int32_t Row::DrawAny(float bound, double uniform) {
  double target = uniform * Keep(bound);
  // Rounding may put the target behind the last weight.
  std::size_t block = 0;
  for (std::size_t i = 0; i < kept_.size(); ++i) {
    if (kept_[i] == 0) continue;
    block = i;
    if (target < kept_[i]) break;
    target -= kept_[i];
  }
  std::array<float, kBlock> weights;
  WeighBlocks(&scores_[block], 1, best_, exponent_, weights.data());
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < kBlock; ++i) {
    if (weights[i] < bound) continue;
    chosen = i;
    if (target < static_cast<double>(weights[i])) break;
    target -= static_cast<double>(weights[i]);
  }
  return static_cast<int32_t>(block * kBlock + chosen);
}

}  // namespace rwkv_world
