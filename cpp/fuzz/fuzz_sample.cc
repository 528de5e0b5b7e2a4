// Any options, memory, mask and logits: refused by name, or a choice that they allow.
#include <cmath>
#include <cstring>
#include <string_view>
#include <vector>

#include "require.h"
#include "rwkv_world/sampler.h"

namespace {

using rwkv_world::Sampler;
using rwkv_world::SamplingError;
using rwkv_world::SamplingOptions;
using rwkv_world::Scores;
using rwkv_world::Scratch;
using rwkv_world::fuzzing::Require;

// Values from the front of the input; zeros where it ends.
class Input {
 public:
  Input(const uint8_t* data, std::size_t size)
      : bytes_(reinterpret_cast<const char*>(data), size) {}

  template <typename Value>
  Value Take() {
    Value value{};
    const std::size_t size = std::min(sizeof(value), bytes_.size());
    if (size != 0) std::memcpy(&value, bytes_.data(), size);
    bytes_.remove_prefix(size);
    return value;
  }

  // Nearly always one that is in range.
  double TakeNumber() {
    const auto form = Take<uint8_t>();
    return form == 255 ? Take<double>() : form / 100.0;
  }

  std::size_t size() const { return bytes_.size(); }

 private:
  std::string_view bytes_;
};

SamplingOptions TakeOptions(Input* input) {
  SamplingOptions options;
  options.temperature = input->TakeNumber();
  options.top_p = input->TakeNumber();
  options.top_k = input->Take<int16_t>();
  options.min_p = input->TakeNumber();
  options.presence_penalty = input->TakeNumber();
  options.frequency_penalty = input->TakeNumber();
  options.repetition_penalty = input->TakeNumber();
  options.penalty_decay = input->TakeNumber();
  for (int left = input->Take<uint8_t>() % 4; left > 0; --left) {
    const auto id = input->Take<int16_t>();
    options.logit_bias.emplace_back(id, input->TakeNumber());
  }
  return options;
}

void Check(Input* input) {
  const auto vocab_size = static_cast<std::size_t>(1 + input->Take<uint16_t>() % 2000);
  const SamplingOptions options = TakeOptions(input);
  Sampler sampler(options, vocab_size, input->Take<uint64_t>());
  Sampler::Memory memory;
  for (int left = input->Take<uint8_t>() % 8; left > 0; --left) {
    memory.ids.push_back(input->Take<int16_t>());
    memory.weights.push_back(input->TakeNumber());
  }
  sampler.Restore(memory);
  sampler.Take(input->Take<int16_t>());

  const bool masked = input->Take<uint8_t>() % 2 == 1;
  std::vector<uint32_t> mask((vocab_size + 31) / 32, ~uint32_t{0});
  for (uint32_t& word : mask) {
    if (masked) word = input->Take<uint32_t>();
  }
  // What is left of the input, over and over: floats of any kind, or small ones.
  std::vector<float> kinds;
  const bool wild = input->Take<uint8_t>() % 2 == 1;
  while (input->size() > 0 && kinds.size() < vocab_size) {
    kinds.push_back(wild ? input->Take<float>() : input->Take<int8_t>() / 8.0F);
  }
  if (kinds.empty()) kinds.push_back(0);
  std::vector<float> logits(vocab_size);
  for (std::size_t i = 0; i < vocab_size; ++i) logits[i] = kinds[i % kinds.size()];

  Scratch scratch;
  const int32_t id = sampler.Choose(logits.data(), masked ? mask.data() : nullptr, &scratch);
  Require(sampler.Choose(logits.data(), masked ? mask.data() : nullptr, &scratch) == id);
  const Scores scores = Scores::Of(0, logits.data(), vocab_size, vocab_size, 3, &scratch);
  for (std::size_t i = 1; i < scores.top.size(); ++i) {
    Require(scores.top[i - 1].log_probability >= scores.top[i].log_probability);
  }
  if (id == rwkv_world::kNotANumber || id == rwkv_world::kNothingAllowed) return;
  const auto place = static_cast<std::size_t>(id);
  Require(id >= 0 && place < vocab_size);
  Require(std::isfinite(logits[place]));
  Require((mask[place / 32] >> (place % 32) & 1) == 1);
  Require(std::isfinite(scores.log_probability) || !std::isfinite(logits[0]));
  sampler.Take(id);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  Input input(data, size);
  try {
    Check(&input);
  } catch (const SamplingError&) {
    return 0;
  }
  return 0;
}
