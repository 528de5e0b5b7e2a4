// A slow and obvious counterpart of the sampler, in double precision, and logits for both.
#ifndef RWKV_WORLD_TESTS_SAMPLING_REFERENCE_H_
#define RWKV_WORLD_TESTS_SAMPLING_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "rwkv_world/sampler.h"

namespace rwkv_world::testing {

inline constexpr float kNever = -std::numeric_limits<float>::infinity();

// Scores after biases, penalties and the mask.
inline std::vector<double> ReferenceScores(const SamplingOptions& options,
                                           const std::vector<float>& logits,
                                           const Sampler::Memory& memory,
                                           const std::vector<uint32_t>& mask) {
  std::vector<double> scores(logits.begin(), logits.end());
  for (const auto& [id, bias] : options.logit_bias) scores[static_cast<std::size_t>(id)] += bias;
  for (std::size_t i = 0; i < memory.ids.size(); ++i) {
    double& score = scores[static_cast<std::size_t>(memory.ids[i])];
    score = score > 0 ? score / options.repetition_penalty : score * options.repetition_penalty;
    score -= options.presence_penalty + options.frequency_penalty * memory.weights[i];
  }
  for (std::size_t i = 0; i < scores.size() && !mask.empty(); ++i) {
    if ((mask[i / 32] >> (i % 32) & 1) == 0) scores[i] = static_cast<double>(kNever);
  }
  return scores;
}

// The probability of each token by its scores. What is as likely as the last token that is kept,
// but for one part in 1e6, is kept where `slack` is above 0, and not kept where it is below.
inline std::vector<double> ReferenceProbabilities(const SamplingOptions& options,
                                                  const std::vector<double>& scores, double slack) {
  const double best = *std::max_element(scores.begin(), scores.end());
  std::vector<double> weights;
  for (const double score : scores) {
    weights.push_back(std::exp((score - best) / options.temperature));
  }
  std::vector<double> falling = weights;
  std::sort(falling.begin(), falling.end(), std::greater<>());
  double bound = options.min_p;
  if (options.top_k != 0) {
    const auto count = std::min(static_cast<std::size_t>(options.top_k), falling.size());
    bound = std::max(bound, falling[count - 1]);
    while (falling.back() < falling[count - 1]) falling.pop_back();
  }
  if (options.top_p < 1) {
    const double mass = options.top_p * std::accumulate(falling.begin(), falling.end(), 0.0);
    double sum = 0;
    for (const double weight : falling) {
      sum += weight;
      if (sum < mass * (1 + slack)) continue;
      bound = std::max(bound, weight);
      break;
    }
  }
  double total = 0;
  for (double& weight : weights) {
    if (weight < bound * (1 - slack)) weight = 0;
    total += weight;
  }
  for (double& weight : weights) weight /= total;
  return weights;
}

// Whether `id` is what `uniform` draws from `probabilities`, but for rounding.
inline bool IsDrawn(const std::vector<double>& probabilities, double uniform, int32_t id) {
  constexpr double kRounding = 2e-5;
  const auto place = probabilities.begin() + id;
  const double before = std::accumulate(probabilities.begin(), place, 0.0);
  return *place > 0 && before <= uniform + kRounding && uniform <= before + *place + kRounding;
}

inline std::vector<float> RandomLogits(std::mt19937* random, std::size_t size, float spread) {
  std::normal_distribution<float> value(0, spread);
  std::vector<float> logits(size);
  for (float& logit : logits) logit = value(*random);
  return logits;
}

}  // namespace rwkv_world::testing

#endif  // RWKV_WORLD_TESTS_SAMPLING_REFERENCE_H_
