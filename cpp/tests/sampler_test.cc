// Choices against a plain reference, and what a choice must not depend on.
#include "rwkv_world/sampler.h"

#include <atomic>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "philox.h"
#include "sampling_reference.h"

#define CHECK_REFUSED(action, part) CHECK_FAILS_WITH(::rwkv_world::SamplingError, action, part)

namespace rwkv_world::testing {
namespace {

using Sizes = std::initializer_list<std::size_t>;

template <typename Item>
Item OneOf(std::mt19937* random, const std::vector<Item>& items) {
  return items[(*random)() % items.size()];
}

SamplingOptions RandomOptions(std::mt19937* random, std::size_t vocab_size) {
  SamplingOptions options;
  options.temperature = OneOf<double>(random, {0.3, 1, 1, 2.5, 100});
  options.top_p = OneOf<double>(random, {0.1, 0.5, 0.95, 1});
  options.top_k = OneOf<int32_t>(random, {0, 0, 2, 40, 5000});
  options.min_p = OneOf<double>(random, {0, 0, 0.05, 0.5});
  options.presence_penalty = OneOf<double>(random, {0, 0.4, -1});
  options.frequency_penalty = OneOf<double>(random, {0, 0.7});
  options.repetition_penalty = OneOf<double>(random, {1, 1.3, 0.8});
  options.penalty_decay = OneOf<double>(random, {1, 0.996, 0.5});
  for (int32_t id = 0; id < static_cast<int32_t>(std::min<std::size_t>(vocab_size, 3)); ++id) {
    if ((*random)() % 2 == 0) options.logit_bias.emplace_back(id, OneOf<double>(random, {4, -90}));
  }
  return options;
}

std::vector<uint32_t> RandomMask(std::mt19937* random, std::size_t vocab_size) {
  std::vector<uint32_t> mask((vocab_size + 31) / 32);
  for (uint32_t& word : mask) word = static_cast<uint32_t>((*random)() & (*random)());
  mask[0] |= 1;
  return mask;
}

// Whether `id` is the reference's choice, but for rounding.
bool IsChoice(const SamplingOptions& options, const std::vector<float>& logits,
              const Sampler::Memory& memory, const std::vector<uint32_t>& mask, int32_t id) {
  const std::vector<double> scores = ReferenceScores(options, logits, memory, mask);
  const double uniform = Uniform(memory.seed, memory.taken);
  for (const double slack : {0.0, 1e-6, -1e-6}) {
    const auto probabilities = ReferenceProbabilities(options, scores, slack);
    if (IsDrawn(probabilities, uniform, id)) return true;
  }
  return false;
}

void TestAgainstReference() {
  std::mt19937 random(1);
  Scratch scratch;
  for (int round = 0; round < 300; ++round) {
    const auto size = OneOf<std::size_t>(&random, {1, 2, 40, 255, 256, 257, 1000, 3000});
    const SamplingOptions options = RandomOptions(&random, size);
    Sampler sampler(options, size, random());
    for (int step = 0; step < 8; ++step) {
      const auto logits = RandomLogits(&random, size, OneOf<float>(&random, {0.01F, 2, 8}));
      const auto mask = random() % 3 == 0 ? RandomMask(&random, size) : std::vector<uint32_t>();
      const uint32_t* const words = mask.empty() ? nullptr : mask.data();
      const int32_t id = sampler.Choose(logits.data(), words, &scratch);
      CHECK(IsChoice(options, logits, sampler.memory(), mask, id));
      sampler.Take(id);
    }
  }
}

void TestFrequencies() {
  std::vector<float> logits(3000, -90.0F);
  const std::vector<std::pair<std::size_t, double>> expected = {{7, 0.5}, {300, 0.3}, {2999, 0.2}};
  for (const auto& [id, probability] : expected) {
    logits[id] = static_cast<float>(std::log(probability));
  }
  Sampler sampler({}, logits.size(), 5);
  Scratch scratch;
  constexpr int kCount = 20000;
  std::vector<int> counts(logits.size());
  for (int i = 0; i < kCount; ++i) {
    const int32_t id = sampler.Choose(logits.data(), nullptr, &scratch);
    sampler.Take(id);
    ++counts[static_cast<std::size_t>(id)];
  }
  for (const auto& [id, probability] : expected) {
    CHECK(std::abs(counts[id] / double{kCount} - probability) < 4 * std::sqrt(0.25 / kCount));
  }
}

void TestGreedy() {
  std::vector<float> logits(1000, 1.0F);
  logits[300] = logits[999] = 2;
  Scratch scratch;
  std::vector<SamplingOptions> greedy(3);
  greedy[0].temperature = 0;
  greedy[1].top_p = 0;
  greedy[2].top_k = 1;
  for (const SamplingOptions& options : greedy) {
    const Sampler sampler(options, logits.size(), 1);
    CHECK_EQUAL(sampler.Choose(logits.data(), nullptr, &scratch), 300);
    std::vector<uint32_t> mask(32, ~uint32_t{0});
    mask[300 / 32] = 0;
    CHECK_EQUAL(sampler.Choose(logits.data(), mask.data(), &scratch), 999);
  }
}

void TestFaults() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Scratch scratch;
  for (const std::size_t size : Sizes{1, 100, 300}) {
    std::vector<float> logits(size, -1.0F);
    const std::vector<uint32_t> nothing((size + 31) / 32);
    // Ids behind the last one do not count.
    std::vector<uint32_t> behind = nothing;
    if (size % 32 != 0) behind.back() = ~uint32_t{0} << size % 32;
    for (const double temperature : {0.0, 1.0}) {
      SamplingOptions options;
      options.temperature = temperature;
      const Sampler sampler(options, size, 1);
      const auto choose = [&](const uint32_t* mask) {
        return sampler.Choose(logits.data(), mask, &scratch);
      };
      CHECK_EQUAL(choose(nothing.data()), kNothingAllowed);
      CHECK_EQUAL(choose(behind.data()), kNothingAllowed);
      for (const float bad : {kInfinity, std::nanf("")}) {
        logits[size / 2] = bad;
        CHECK_EQUAL(choose(nullptr), kNotANumber);
        CHECK_EQUAL(choose(nothing.data()), kNotANumber);
        CHECK(std::isnan(Scores::Of(0, logits.data(), size, size, 2, &scratch).log_probability));
      }
      std::fill(logits.begin(), logits.end(), kNever);
      CHECK_EQUAL(choose(nullptr), kNotANumber);
      logits[size / 2] = -3e38F;
      CHECK_EQUAL(choose(nullptr), static_cast<int32_t>(size / 2));
      std::fill(logits.begin(), logits.end(), -1.0F);
    }
  }
}

// A choice is the same alone, in any company and any order, again, and on any thread.
void TestCompany() {
  std::mt19937 random(7);
  constexpr std::size_t kCount = 12, kSize = 2000;
  std::vector<std::unique_ptr<Sampler>> samplers;
  std::vector<std::vector<float>> logits;
  std::vector<int32_t> alone;
  Scratch scratch;
  for (std::size_t i = 0; i < kCount; ++i) {
    samplers.push_back(
        std::make_unique<Sampler>(RandomOptions(&random, kSize), kSize - i, random()));
    logits.push_back(RandomLogits(&random, kSize, 2));
    for (int32_t id = 0; id < 5; ++id) samplers.back()->Take(id);
    alone.push_back(samplers[i]->Choose(logits[i].data(), nullptr, &scratch));
  }
  const auto check = [&](unsigned seed) {
    std::mt19937 order(seed);
    Scratch own;
    for (int round = 0; round < 20; ++round) {
      std::vector<ChoiceRequest> requests;
      std::vector<int32_t> expected;
      for (std::size_t i = 0; i < 1 + order() % 8; ++i) {
        const std::size_t chosen = order() % kCount;
        requests.push_back({samplers[chosen].get(), logits[chosen].data(), nullptr});
        expected.push_back(alone[chosen]);
      }
      std::vector<int32_t> ids(requests.size());
      ChooseAll(requests.data(), requests.size(), &own, ids.data());
      if (ids != expected) return false;
    }
    return true;
  };
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] { wrong += check(seed) ? 0 : 1; });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(wrong.load(), 0);
}

void TestSharedSampler() {
  Sampler sampler({}, 100, 1);
  const std::vector<float> logits(100);
  std::vector<std::thread> threads;
  for (int32_t id = 0; id < 4; ++id) {
    threads.emplace_back([&, id] {
      Scratch scratch;
      for (int i = 0; i < 200; ++i) {
        sampler.Take(id);
        CHECK(sampler.Choose(logits.data(), nullptr, &scratch) >= 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(sampler.memory().taken, 800U);
  CHECK_EQUAL(sampler.memory().ids.size(), 4U);
}

void TestMemory() {
  SamplingOptions options;
  options.penalty_decay = 0.5;
  Sampler sampler(options, 50, 9);
  for (int32_t id = 0; id < 30; ++id) sampler.Take(id);
  // Weights below 1e-3 are forgotten: 0.5^10.
  CHECK_EQUAL(sampler.memory().ids.size(), 10U);
  sampler.Take(29);
  CHECK_EQUAL(sampler.memory().weights.back(), 1.5);
  CHECK_EQUAL(sampler.memory().taken, 31U);

  const Sampler::Memory memory = sampler.memory();
  Sampler other(options, 50, 1);
  other.Restore(memory);
  CHECK_EQUAL(other.memory().seed, 9U);
  CHECK(other.memory().ids == memory.ids);
  sampler.Forget();
  CHECK(sampler.memory().ids.empty() && sampler.memory().weights.empty());
  CHECK_EQUAL(sampler.memory().taken, 31U);

  CHECK_REFUSED(sampler.Take(50), "token id 50 is not in 0..49");
  CHECK_REFUSED(sampler.Take(-1), "token id -1 is not in 0..49");
  CHECK_REFUSED(sampler.Restore({{1, 2}, {1.0}, 0, 0}), "2 tokens have 1 weights");
  CHECK_REFUSED(sampler.Restore({{50}, {1.0}, 0, 0}), "token id 50");
  CHECK_REFUSED(sampler.Restore({{3, 3}, {1.0, 1.0}, 0, 0}), "token id 3 is twice");
  CHECK_REFUSED(sampler.Restore({{3}, {std::nan("")}, 0, 0}), "a weight is nan");
  CHECK_EQUAL(sampler.memory().taken, 31U);
}

void TestRefusedOptions() {
  const auto refuse = [](auto member, auto value, const std::string& part) {
    SamplingOptions options;
    options.*member = value;
    CHECK_REFUSED(Sampler(options, 100, 0), part);
  };
  refuse(&SamplingOptions::temperature, -0.5, "temperature is -0.5");
  refuse(&SamplingOptions::temperature, std::nan(""), "temperature is nan");
  refuse(&SamplingOptions::top_p, 1.5, "top_p is 1.5");
  refuse(&SamplingOptions::top_k, -1, "top_k is -1");
  refuse(&SamplingOptions::min_p, -0.5, "min_p is -0.5");
  refuse(&SamplingOptions::presence_penalty, std::nan(""), "presence_penalty is nan");
  refuse(&SamplingOptions::frequency_penalty, HUGE_VAL, "frequency_penalty is inf");
  refuse(&SamplingOptions::repetition_penalty, 0, "repetition_penalty is 0");
  refuse(&SamplingOptions::penalty_decay, 2, "penalty_decay is 2");
  using Biases = decltype(SamplingOptions::logit_bias);
  refuse(&SamplingOptions::logit_bias, Biases{{100, 1.0}}, "token id 100");
  refuse(&SamplingOptions::logit_bias, Biases{{1, 1.0}, {1, 2.0}}, "token id 1 is twice");
  refuse(&SamplingOptions::logit_bias, Biases{{1, HUGE_VAL}}, "a bias is inf");
  CHECK_REFUSED(Sampler({}, 0, 0), "the vocabulary's size is 0");
}

void TestScores() {
  std::mt19937 random(11);
  Scratch scratch;
  for (const std::size_t size : Sizes{1, 300, 5000}) {
    std::vector<float> logits = RandomLogits(&random, size, 5);
    if (size > 1) logits[1] = kNever;
    double total = 0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit));
    const auto expected = [&](int32_t id) {
      return static_cast<double>(logits[static_cast<std::size_t>(id)]) - std::log(total);
    };
    const std::size_t usable = size - size / 10;
    const auto id = static_cast<int32_t>(size - 1);
    const Scores scores = Scores::Of(id, logits.data(), size, usable, 4, &scratch);
    CHECK(std::abs(scores.log_probability - expected(id)) < 1e-6);
    CHECK_EQUAL(scores.top.size(), std::min<std::size_t>(4, usable));
    for (const Scores::Token& token : scores.top) {
      CHECK(std::abs(token.log_probability - expected(token.id)) < 1e-6);
      CHECK(static_cast<std::size_t>(token.id) < usable);
    }
    CHECK_REFUSED(Scores::Of(id + 1, logits.data(), size, usable, 0, &scratch), "is not in 0..");
    if (size > 1) {
      CHECK_EQUAL(Scores::Of(1, logits.data(), size, usable, 0, &scratch).log_probability,
                  -HUGE_VAL);
    }
  }
}

}  // namespace
}  // namespace rwkv_world::testing

int main() {
  using namespace rwkv_world::testing;
  TestAgainstReference();
  TestFrequencies();
  TestGreedy();
  TestFaults();
  TestCompany();
  TestSharedSampler();
  TestMemory();
  TestRefusedOptions();
  TestScores();
  return Failures();
}
