// Choosing the next token of a sequence by a model's logits.
//
//   rwkv_world::SamplingOptions options;
//   options.top_p = 0.3;
//   rwkv_world::Sampler sampler(options, 65530, seed);
//   rwkv_world::Scratch scratch;
//   const int32_t id = sampler.Choose(logits, nullptr, &scratch);
//   sampler.Take(id);
//
// A choice depends on nothing but the sampler's options, its seed, the tokens it has taken, and the
// logits: not on what else is chosen in the same call, and on x86-64 and aarch64 it is the same.
// There is no global state.
#ifndef RWKV_WORLD_SAMPLER_H_
#define RWKV_WORLD_SAMPLER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

namespace rwkv_world {

class Row;

// Options, a token id or a memory that no sampler can use. The message names the value.
class SamplingError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// How tokens are chosen. The order: logit_bias, penalties, temperature, top_k, top_p, min_p, and
// one random number. A token exactly as likely as the last that is kept is kept too.
struct SamplingOptions {
  // From 0 up; below 1e-6 the likeliest token is taken, of equals the one with the lowest id. So
  // it is with a top_p of 0 and a top_k of 1.
  double temperature = 1;
  // Only the likeliest tokens whose probabilities reach this sum, from 0 to 1.
  double top_p = 1;
  // Only so many of the likeliest tokens; 0 for all.
  int32_t top_k = 0;
  // Only tokens that are at least this many times as likely as the likeliest, from 0 to 1.
  double min_p = 0;
  // A token that was taken loses presence_penalty plus frequency_penalty times its weight: 1 for
  // each time it was taken, times penalty_decay (from 0 to 1) for each token since. Its logit is
  // first divided by repetition_penalty (above 0) where it is positive, else multiplied by it.
  double presence_penalty = 0;
  double frequency_penalty = 0;
  double repetition_penalty = 1;
  double penalty_decay = 1;
  // Ids, none of them twice, and what is added to their logits.
  std::vector<std::pair<int32_t, double>> logit_bias;
};

// What Choose gives instead of an id: the logits hold NaN or infinity, or are minus infinity all;
// or what the mask allows is minus infinity.
inline constexpr int32_t kNotANumber = -1;
inline constexpr int32_t kNothingAllowed = -2;

// The memory that a choice works in, under a megabyte for World models. Keep one for each thread;
// its content never matters.
class Scratch {
 public:
  Scratch();
  ~Scratch();

 private:
  friend class Sampler;
  friend struct Scores;
  std::unique_ptr<Row> row_;
};

// Chooses the tokens of one sequence. Several threads may use one: their calls take turns where
// they have to.
class Sampler {
 public:
  // Only ids below `vocab_size` are chosen. Throws SamplingError for options out of range.
  Sampler(SamplingOptions options, std::size_t vocab_size, uint64_t seed);

  // The next id, or one of the two above. `logits` holds `vocab_size` values, minus infinity for
  // tokens that never come. In `mask`, if it is not null, bit i % 32 of word i / 32 says whether
  // id i is allowed. Nothing changes but the scratch: the same call gives the same id.
  int32_t Choose(const float* logits, const uint32_t* mask, Scratch* scratch) const;

  // Moves on behind a token, whether it was chosen here or elsewhere. Throws SamplingError for an
  // id from `vocab_size` up.
  void Take(int32_t id);

  // Begins a new text: no token has been taken, as far as penalties go. Random numbers go on.
  void Forget();

  // All that choices depend on beside options and logits.
  struct Memory {
    // Tokens that were taken and not forgotten, none of them twice, and their weights.
    std::vector<int32_t> ids;
    std::vector<double> weights;
    // The n-th choice draws the first word of Philox4x64-10 with this key at the counter n.
    uint64_t seed = 0;
    uint64_t taken = 0;
  };
  Memory memory() const;

  // Goes on where `memory` was taken. Throws SamplingError, and nothing changes, where its vectors
  // differ in length or hold an id from `vocab_size` up, one twice, or a weight that is not finite.
  void Restore(Memory memory);

  std::size_t vocab_size() const noexcept { return vocab_size_; }

 private:
  void Penalize(Row* row) const;

  const SamplingOptions options_;
  const std::size_t vocab_size_;
  mutable std::mutex mutex_;  // of memory_
  Memory memory_;
};

// One sequence of several that choose together.
struct ChoiceRequest {
  const Sampler* sampler;
  const float* logits;
  const uint32_t* mask;
};

// What Sampler::Choose gives for each of `count` requests, written to `ids`.
void ChooseAll(const ChoiceRequest* requests, std::size_t count, Scratch* scratch, int32_t* ids);

// Logarithms of a model's own probabilities: no option of sampling has a part in them.
struct Scores {
  struct Token {
    int32_t id;
    double log_probability;
  };

  // Of `id`, by `logits` of `vocab_size` tokens; and the `top` likeliest tokens with ids below
  // `usable`, the likeliest first, of equals the one with the lower id. NaN and no tokens for
  // logits at which Choose gives kNotANumber. Throws SamplingError for an id from `vocab_size` up.
  static Scores Of(int32_t id, const float* logits, std::size_t vocab_size, std::size_t usable,
                   std::size_t top, Scratch* scratch);

  double log_probability;
  std::vector<Token> top;
};

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SAMPLER_H_
