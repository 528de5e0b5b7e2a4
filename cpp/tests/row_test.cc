// Where a row is cut, against a full sort, and its vector passes against plain arithmetic.
#include "row.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "passes.h"
#include "philox.h"
#include "sampling_reference.h"

namespace rwkv_world::testing {
namespace {

using Sizes = std::initializer_list<std::size_t>;

// The weights that a row gives the logits at temperature 1, the largest first.
std::vector<float> Falling(const std::vector<float>& logits) {
  std::vector<float> weights = logits;
  const float best = *std::max_element(weights.begin(), weights.end());
  Exponentials(weights.data(), weights.size(), best, static_cast<float>(1.4426950408889634));
  std::sort(weights.begin(), weights.end(), std::greater<>());
  return weights;
}

// What a bound keeps of falling weights: how many, and how much of the whole.
struct Kept {
  std::size_t count;
  double share;
};
Kept From(const std::vector<float>& falling, float bound) {
  const auto end = std::find_if(falling.begin(), falling.end(), [&](float w) { return w < bound; });
  const double total = std::accumulate(falling.begin(), falling.end(), 0.0);
  return {static_cast<std::size_t>(end - falling.begin()),
          std::accumulate(falling.begin(), end, 0.0) / total};
}

void CheckBounds(const std::vector<float>& logits) {
  constexpr double kRounding = 1e-6;
  const std::vector<float> falling = Falling(logits);
  Row row;
  row.Load(logits.data(), logits.size());
  CHECK(row.Rank(1));
  row.Weigh();
  for (const double share : {1e-9, 0.1, 0.3, 0.5, 0.9, 0.99, 0.9999999}) {
    const float bound = row.MassBound(share, std::numeric_limits<float>::min());
    CHECK(std::binary_search(falling.begin(), falling.end(), bound, std::greater<>()));
    CHECK(From(falling, bound).share >= share - kRounding);
    // What is larger does not reach it.
    CHECK(From(falling, std::nextafter(bound, 2.0F)).share < share + kRounding);
  }
  for (std::size_t count : Sizes{1, 2, 7, 40, 300, 5000, 70000}) {
    const float bound = row.CountBound(count);
    count = std::min(count, falling.size());
    while (falling[count - 1] == 0) --count;
    CHECK_EQUAL(bound, falling[count - 1]);
    // With both, the share is of what is counted.
    const float both = row.MassBound(0.5, bound);
    CHECK(both >= bound);
    CHECK(From(falling, both).share >= 0.5 * From(falling, bound).share - kRounding);
  }
}

void TestBounds() {
  std::mt19937 random(1);
  for (const std::size_t size : Sizes{1, 2, 31, 255, 256, 257, 4096, 20000}) {
    for (const float spread : {0.0F, 1e-4F, 0.01F, 1.0F, 3.0F, 10.0F, 60.0F}) {
      std::vector<float> logits = RandomLogits(&random, size, spread);
      CheckBounds(logits);
      std::sort(logits.begin(), logits.end());
      CheckBounds(logits);
      std::reverse(logits.begin(), logits.end());
      CheckBounds(logits);
    }
  }
  // Equals everywhere; none but one; halves of each; a stair.
  std::vector<float> logits(5000, 1.5F);
  CheckBounds(logits);
  std::fill(logits.begin(), logits.end(), kNever);
  logits[4321] = -3;
  CheckBounds(logits);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = i % 2 == 0 ? 0.0F : -1.0F;
  CheckBounds(logits);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = -0.01F * static_cast<float>(i % 1000);
  CheckBounds(logits);
  // Where a sample at equal distances sees nothing of it.
  std::fill(logits.begin(), logits.end(), -20.0F);
  for (std::size_t i = 1; i < logits.size(); i += 3) logits[i] = -0.0001F * static_cast<float>(i);
  CheckBounds(logits);
}

void TestExponentials() {
  double worst = 0;
  for (double x = 0; x > -23; x -= 1e-4) {
    auto value = static_cast<float>(x);
    const double expected = std::exp2(static_cast<double>(value));
    Exponentials(&value, 1, 0, 1);
    worst = std::max(worst, std::abs(static_cast<double>(value) / expected - 1));
  }
  CHECK(worst < 2e-7);
  for (const auto& [x, expected] : std::vector<std::pair<float, float>>{
           {0.0F, 1.0F}, {-1.0F, 0.5F}, {-126.0F, 0.0F}, {-1e30F, 0.0F}, {kNever, 0.0F}}) {
    float value = x;
    Exponentials(&value, 1, 0, 1);
    CHECK_EQUAL(value, expected);
  }
}

void TestBestIds() {
  std::mt19937 random(3);
  for (const std::size_t size : Sizes{1, 300, 3000}) {
    std::vector<float> logits = RandomLogits(&random, size, 1);
    // Many equals.
    for (float& logit : logits) logit = std::round(logit * 20);
    Row row;
    row.Load(logits.data(), size);
    CHECK(row.Rank(0));
    CHECK_EQUAL(row.best(), *std::max_element(logits.begin(), logits.end()));
    std::vector<int32_t> ids(size);
    std::iota(ids.begin(), ids.end(), 0);
    for (const std::size_t usable : Sizes{size, (size + 1) / 2}) {
      ids.resize(usable);
      std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
        return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
      });
      for (const std::size_t count : Sizes{0, 1, 5, 20, 5000}) {
        const std::vector<int32_t> expected(
            ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(std::min(count, usable)));
        CHECK(row.BestIds(count, usable) == expected);
      }
      if (usable == size) CHECK_EQUAL(row.BestId(), ids[0]);
      std::sort(ids.begin(), ids.end());
    }
  }
}

// Scores that were changed or forbidden, against a row that was loaded with what they became.
void TestChanges() {
  std::mt19937 random(4);
  for (const std::size_t size : Sizes{1, 31, 33, 255, 256, 257, 3000}) {
    for (const int rare : {1, 2, 100}) {
      const std::vector<float> logits = RandomLogits(&random, size, 3);
      std::vector<float> expected = logits;
      std::vector<uint32_t> mask((size + 31) / 32, ~uint32_t{0});
      Row row;
      row.Load(logits.data(), size);
      for (std::size_t i = 0; i < size; ++i) {
        if (random() % static_cast<unsigned>(rare) == 0) {
          row[static_cast<int32_t>(i)] += 1.5F;
          expected[i] += 1.5F;
        }
        // The first stays allowed.
        if (i > 0 && random() % static_cast<unsigned>(rare) == 0) {
          mask[i / 32] &= ~(uint32_t{1} << i % 32);
          expected[i] = kNever;
        }
      }
      row.Allow(mask.data());
      Row other;
      other.Load(expected.data(), size);
      CHECK(row.Rank(1) && other.Rank(1));
      CHECK_EQUAL(row.best(), other.best());
      CHECK(row.BestIds(size, size) == other.BestIds(size, size));
      row.Weigh();
      other.Weigh();
      CHECK_EQUAL(row.Total(), other.Total());
      for (const double uniform : {0.0, 0.2, 0.9, 0.999999}) {
        CHECK_EQUAL(row.Draw(0, uniform), other.Draw(0, uniform));
      }
    }
  }
}

// At a temperature without end all weigh the same.
void TestHottest() {
  const std::vector<float> logits{1, 2, 3, 4};
  for (const double temperature : {1e9, 1e300}) {
    Row row;
    row.Load(logits.data(), logits.size());
    CHECK(row.Rank(temperature));
    row.Weigh();
    CHECK(std::abs(row.Total() - 4) < 1e-6);
    CHECK_EQUAL(row.Draw(0, 0.6), 2);
  }
}

// Whatever score a forbidden or changed logit gets, it is known not to be a number.
void TestNotANumber() {
  for (const float fault : {std::numeric_limits<float>::quiet_NaN(), -kNever}) {
    for (const std::size_t place : Sizes{0, 255, 256, 299}) {
      std::vector<float> logits(300, 1);
      logits[place] = fault;
      const std::vector<uint32_t> mask(10, 0);
      Row row;
      row.Load(logits.data(), logits.size());
      row[static_cast<int32_t>(place)] = 0;
      row.Allow(mask.data());
      CHECK(!row.Rank(1));
    }
  }
}

// As numpy.random.Philox gives them.
void TestPhilox() {
  CHECK_EQUAL(Philox(0, 0)[0], 0x16554d9eca36314cU);
  CHECK_EQUAL(Philox(0, 0)[3], 0x7e68b68aec7ba23bU);
  CHECK_EQUAL(Philox(1, 0)[0], 0xcb7ea744cf19bb4cU);
  CHECK_EQUAL(Philox(~uint64_t{0}, 12345)[0], 0xa39fd26038090f6fU);
  CHECK_EQUAL(Philox(0x243f6a8885a308d3, 7)[2], 0xadca22a1c016590eU);
}

}  // namespace
}  // namespace rwkv_world::testing

int main() {
  using namespace rwkv_world::testing;
  TestPhilox();
  TestExponentials();
  TestBestIds();
  TestChanges();
  TestNotANumber();
  TestHottest();
  TestBounds();
  return Failures();
}
