#include "rwkv_world/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "philox.h"
#include "row.h"

namespace rwkv_world {
namespace {

// Below this a temperature cannot be told from zero.
constexpr double kColdest = 1e-6;
// A token whose weight has decayed below this is no longer penalized, so that the memory stays
// short however long a text becomes.
constexpr double kForgotten = 1e-3;

void Require(bool holds, const char* name, double value, const char* expected) {
  if (holds) return;
  throw SamplingError(std::string(name) + " is " + std::to_string(value) + "; expected " +
                      expected);
}

void RequireId(int32_t id, std::size_t vocab_size) {
  if (id >= 0 && static_cast<std::size_t>(id) < vocab_size) return;
  throw SamplingError("token id " + std::to_string(id) + " is not in 0.." +
                      std::to_string(vocab_size - 1));
}

void RequireDifferent(std::vector<int32_t> ids, const char* place) {
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice == ids.end()) return;
  throw SamplingError("token id " + std::to_string(*twice) + " is twice in " + place);
}

void Check(const SamplingOptions& options, std::size_t vocab_size) {
  const auto share = [](double value) { return value >= 0 && value <= 1; };
  constexpr auto kMaxVocabSize = std::size_t{1} << 30;
  Require(vocab_size >= 1 && vocab_size <= kMaxVocabSize, "the vocabulary's size",
          static_cast<double>(vocab_size), "1 to 2^30");
  Require(options.temperature >= 0 && std::isfinite(options.temperature), "temperature",
          options.temperature, "a number from 0 up");
  Require(share(options.top_p), "top_p", options.top_p, "0 to 1");
  Require(options.top_k >= 0, "top_k", options.top_k, "a number from 0 up");
  Require(share(options.min_p), "min_p", options.min_p, "0 to 1");
  Require(std::isfinite(options.presence_penalty), "presence_penalty", options.presence_penalty,
          "a number");
  Require(std::isfinite(options.frequency_penalty), "frequency_penalty", options.frequency_penalty,
          "a number");
  Require(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty),
          "repetition_penalty", options.repetition_penalty, "a number above 0");
  Require(share(options.penalty_decay), "penalty_decay", options.penalty_decay, "0 to 1");
  std::vector<int32_t> ids;
  for (const auto& [id, bias] : options.logit_bias) {
    RequireId(id, vocab_size);
    Require(std::isfinite(bias), "a bias", bias, "a number");
    ids.push_back(id);
  }
  RequireDifferent(std::move(ids), "logit_bias");
}

}  // namespace

Scratch::Scratch() : row_(std::make_unique<Row>()) {}
Scratch::~Scratch() = default;

Sampler::Sampler(SamplingOptions options, std::size_t vocab_size, uint64_t seed)
    : options_(std::move(options)), vocab_size_(vocab_size) {
  Check(options_, vocab_size);
  memory_.seed = seed;
}

int32_t Sampler::Choose(const float* logits, const uint32_t* mask, Scratch* scratch) const {
  Row& row = *scratch->row_;
  row.Load(logits, vocab_size_);
  Penalize(&row);
  if (mask != nullptr) row.Allow(mask);
  const bool greedy = options_.temperature < kColdest || options_.top_p == 0 || options_.top_k == 1;
  if (!row.Rank(greedy ? 0 : options_.temperature)) return kNotANumber;
  const float best = row.best();
  if (!std::isfinite(best)) {
    const bool any =
        std::any_of(logits, logits + vocab_size_, [](float logit) { return std::isfinite(logit); });
    return any && best < 0 ? kNothingAllowed : kNotANumber;
  }
  if (greedy) return row.BestId();
  row.Weigh();
  float bound = std::numeric_limits<float>::min();
  if (options_.top_k != 0) bound = row.CountBound(static_cast<std::size_t>(options_.top_k));
  if (options_.top_p < 1) bound = row.MassBound(options_.top_p, bound);
  bound = std::max(bound, static_cast<float>(options_.min_p));
  const std::lock_guard lock(mutex_);
  return row.Draw(bound, Uniform(memory_.seed, memory_.taken));
}

void Sampler::Penalize(Row* row) const {
  for (const auto& [id, bias] : options_.logit_bias) (*row)[id] += static_cast<float>(bias);
  const auto repetition = static_cast<float>(options_.repetition_penalty);
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < memory_.ids.size(); ++i) {
    float& score = (*row)[memory_.ids[i]];
    // A token that never comes stays one.
    if (std::isinf(score)) continue;
    if (repetition != 1) score = score > 0 ? score / repetition : score * repetition;
    score -= static_cast<float>(options_.presence_penalty +
                                options_.frequency_penalty * memory_.weights[i]);
  }
}

void Sampler::Take(int32_t id) {
  RequireId(id, vocab_size_);
  const std::lock_guard lock(mutex_);
  auto& [ids, weights, seed, taken] = memory_;
  ++taken;
  for (double& weight : weights) weight *= options_.penalty_decay;
  const auto known = std::find(ids.begin(), ids.end(), id);
  if (known != ids.end()) {
    weights[static_cast<std::size_t>(known - ids.begin())] += 1;
    return;
  }
  std::size_t kept = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (weights[i] < kForgotten) continue;
    ids[kept] = ids[i];
    weights[kept] = weights[i];
    ++kept;
  }
  ids.resize(kept);
  weights.resize(kept);
  ids.push_back(id);
  weights.push_back(1);
}

void Sampler::Forget() {
  const std::lock_guard lock(mutex_);
  memory_.ids.clear();
  memory_.weights.clear();
}

Sampler::Memory Sampler::memory() const {
  const std::lock_guard lock(mutex_);
  return memory_;
}

void Sampler::Restore(Memory memory) {
  if (memory.ids.size() != memory.weights.size()) {
    throw SamplingError(std::to_string(memory.ids.size()) + " tokens have " +
                        std::to_string(memory.weights.size()) + " weights");
  }
  for (const int32_t id : memory.ids) RequireId(id, vocab_size_);
  for (const double weight : memory.weights) {
    Require(std::isfinite(weight), "a weight", weight, "a number");
  }
  RequireDifferent(memory.ids, "the memory");
  const std::lock_guard lock(mutex_);
  memory_ = std::move(memory);
}

void ChooseAll(const ChoiceRequest* requests, std::size_t count, Scratch* scratch, int32_t* ids) {
  for (std::size_t i = 0; i < count; ++i) {
    ids[i] = requests[i].sampler->Choose(requests[i].logits, requests[i].mask, scratch);
  }
}

Scores Scores::Of(int32_t id, const float* logits, std::size_t vocab_size, std::size_t usable,
                  std::size_t top, Scratch* scratch) {
  RequireId(id, vocab_size);
  Row& row = *scratch->row_;
  Scores scores{std::numeric_limits<double>::quiet_NaN(), {}};
  row.Load(logits, vocab_size);
  if (!row.Rank(1)) return scores;
  const auto best = static_cast<double>(row.best());
  if (!std::isfinite(best)) return scores;
  const std::vector<int32_t> ids = row.BestIds(top, std::min(usable, vocab_size));
  row.Weigh();
  const double shift = best + std::log(row.Total());
  scores.log_probability = static_cast<double>(logits[id]) - shift;
  for (const int32_t likely : ids) {
    scores.top.push_back({likely, static_cast<double>(logits[likely]) - shift});
  }
  return scores;
}

}  // namespace rwkv_world
