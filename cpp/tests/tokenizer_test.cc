// Encoding and decoding against the reference, and what threads and adversaries may do.
#include <chrono>
#include <string>
#include <thread>

#include "check.h"
#include "reference.h"

namespace rwkv_world::testing {
namespace {

void CheckText(const Tokenizer& tokenizer, const Reference& reference, std::string_view text) {
  const std::vector<int32_t> ids = tokenizer.Encode(text);
  CHECK(ids == reference.Encode(text));
  CHECK(tokenizer.Decode(ids) == text);
}

void TestKnownIds(const Tokenizer& tokenizer) {
  const std::vector<int32_t> ids = {24281, 59, 4571, 261, 5585, 41693, 59};
  CHECK(tokenizer.Encode("User: hi\n\nAssistant:") == ids);
  CHECK(tokenizer.Encode("").empty());
  CHECK(tokenizer.Decode({}).empty());
  CHECK(tokenizer.Decode({kEndOfText, 24281, kEndOfText}) == "User");
}

void TestAgainstReference(const Tokenizer& tokenizer) {
  Tokens tokens;
  for (int32_t id = 1; id <= static_cast<int32_t>(tokenizer.token_count()); ++id) {
    tokens.emplace_back(id, tokenizer.IdToBytes(id));
  }
  const Reference reference(tokens);
  for (const auto& [id, bytes] : tokens) {
    CHECK(tokenizer.Encode(bytes) == std::vector<int32_t>{id});
    CHECK_EQUAL(tokenizer.BytesToId(bytes), id);
  }
  std::mt19937 random(1);
  std::uniform_int_distribution<std::size_t> any(0, tokens.size() - 1);
  std::vector<std::string_view> some(2000);
  for (std::string_view& token : some) token = tokens[any(random)].second;
  for (const std::string_view first : some) {
    for (const std::string_view second : some) {
      CheckText(tokenizer, reference, std::string(first) += second);
    }
  }
  for (std::size_t size = 0; size < 300; ++size) {
    CheckText(tokenizer, reference, RandomBytes(&random, size));
  }
}

// Vocabularies over few letters are dense: shared beginnings, deep backtracking, full blocks.
void TestRandomVocabularies() {
  std::mt19937 random(2);
  for (int round = 0; round < 60; ++round) {
    std::vector<std::string> strings = SingleBytes();
    const int alphabet = 2 + round % 5;
    std::uniform_int_distribution<std::size_t> length(2, round % 2 == 0 ? 12 : kMaxTokenBytes);
    for (int i = 0; i < 40 * round; ++i) {
      strings.push_back(RandomBytes(&random, length(random), alphabet));
    }
    std::sort(strings.begin(), strings.end());
    strings.erase(std::unique(strings.begin(), strings.end()), strings.end());
    const Tokens tokens = Number(strings);
    const Tokenizer tokenizer = Tokenizer::FromTokens(tokens);
    const Reference reference(tokens);
    CheckText(tokenizer, reference, RandomBytes(&random, 2000, alphabet));
    CheckText(tokenizer, reference, RandomBytes(&random, 500));
    for (const auto& [id, bytes] : tokens) CHECK_EQUAL(tokenizer.BytesToId(bytes), id);
    for (int i = 0; i < 300; ++i) {
      const std::string bytes = RandomBytes(&random, length(random), alphabet);
      const auto known = std::lower_bound(strings.begin(), strings.end(), bytes);
      const bool is_token = known != strings.end() && *known == bytes;
      CHECK_EQUAL(tokenizer.BytesToId(bytes) >= 0, is_token);
    }
  }
}

void TestBoundedEncoding(const Tokenizer& tokenizer) {
  std::mt19937 random(3);
  const std::string text = RandomBytes(&random, 5000, 128);
  const std::vector<int32_t> expected = tokenizer.Encode(text);
  for (const std::size_t capacity : {std::size_t{1}, std::size_t{7}, text.size()}) {
    std::vector<int32_t> ids;
    std::vector<int32_t> buffer(capacity);
    for (std::size_t position = 0; position < text.size();) {
      const std::size_t count = tokenizer.EncodeSome(text, &position, buffer.data(), capacity);
      ids.insert(ids.end(), buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(count));
    }
    CHECK(ids == expected);
  }
  std::vector<int32_t> ids(text.size(), -7);
  ids.resize(tokenizer.Encode(text, ids.data()));
  CHECK(ids == expected);
}

std::vector<char> DecodePiece(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                              std::size_t* position, std::size_t room) {
  std::vector<char> piece(room);
  piece.resize(tokenizer.DecodeSome(ids.data(), ids.size(), position, piece.data(), room));
  return piece;
}

void TestDecoding(const Tokenizer& tokenizer) {
  std::mt19937 random(4);
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(tokenizer.token_count()));
  for (std::size_t count = 0; count < 100; ++count) {
    std::vector<int32_t> ids(count);
    std::string expected;
    for (int32_t& id : ids) {
      id = any(random);
      expected += tokenizer.IdToBytes(id);
    }
    CHECK(tokenizer.Decode(ids) == expected);
    // The sanitizers see a copy that writes past the end of one of these.
    for (const std::size_t room : {kMaxTokenBytes, kMaxTokenBytes + 1, std::size_t{700}}) {
      std::string pieces;
      for (std::size_t position = 0; position < count;) {
        const std::vector<char> piece = DecodePiece(tokenizer, ids, &position, room);
        CHECK(!piece.empty() || position == count);
        pieces.append(piece.data(), piece.size());
      }
      CHECK(pieces == expected);
    }
    std::size_t position = 0;
    const std::vector<char> whole = DecodePiece(tokenizer, ids, &position, expected.size());
    CHECK(std::string_view(whole.data(), whole.size()) == expected);
    CHECK_EQUAL(position, count);
  }
  // Where a token does not fit, it waits for the next piece.
  const std::vector<int32_t> ids = {24281, 59, 24281};
  std::size_t position = 0;
  CHECK_EQUAL(DecodePiece(tokenizer, ids, &position, 3).size(), 0U);
  CHECK_EQUAL(position, 0U);
  CHECK_EQUAL(DecodePiece(tokenizer, ids, &position, 8).size(), 5U);
  CHECK_EQUAL(position, 2U);
  const std::vector<int32_t> longest = {static_cast<int32_t>(tokenizer.token_count())};
  CHECK(tokenizer.Decode(longest) == std::string(128, ' '));
}

void TestUnknownIds(const Tokenizer& tokenizer) {
  CHECK(tokenizer.IdToBytes(kEndOfText).empty());
  for (const int32_t id : {-1, INT32_MIN, 65530, 65535, 65536, INT32_MAX}) {
    const std::string part =
        "token id " + std::to_string(id) + " does not exist; the vocabulary has the ids 0 to 65529";
    CHECK_FAILS(tokenizer.IdToBytes(id), part);
    CHECK_FAILS(tokenizer.Decode({1, id, 2}), part);
    const std::vector<int32_t> ids = {1, 2, id, 3};
    for (const std::size_t room : {std::size_t{3}, std::size_t{1000}}) {
      std::size_t position = 1;
      CHECK_FAILS(DecodePiece(tokenizer, ids, &position, room), part);
      CHECK_EQUAL(position, 1U);
    }
  }
  CHECK_EQUAL(tokenizer.BytesToId(""), -1);
  CHECK_EQUAL(tokenizer.BytesToId("no such token"), -1);
}

void TestThreads(const Tokenizer& tokenizer) {
  std::mt19937 random(5);
  const std::string text = RandomBytes(&random, 200000, 100);
  const std::vector<int32_t> expected = tokenizer.Encode(text);
  std::vector<std::vector<int32_t>> ids(4);
  std::vector<std::thread> threads;
  for (std::vector<int32_t>& mine : ids) {
    threads.emplace_back([&, copy = tokenizer] { mine = copy.Encode(copy.Decode(expected)); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<int32_t>& mine : ids) CHECK(mine == expected);
}

// 79 of a letter that has a token of 80, over and over: the most that a walk can go back.
void TestLinearTime(const Tokenizer& tokenizer) {
  const auto seconds = [&](std::size_t repeats) {
    std::string text;
    for (std::size_t i = 0; i < repeats; ++i) text += std::string(79, '#') + "x";
    const auto start = std::chrono::steady_clock::now();
    CHECK(tokenizer.Decode(tokenizer.Encode(text)) == text);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const double small = std::min({seconds(2000), seconds(2000), seconds(2000)});
  // Quadratic time would be 400 times as much.
  CHECK(seconds(40000) < 100 * small);
}

}  // namespace
}  // namespace rwkv_world::testing

int main(int, char** arguments) {
  using namespace rwkv_world::testing;
  const auto tokenizer = rwkv_world::Tokenizer::FromFile(arguments[1]);
  TestKnownIds(tokenizer);
  TestAgainstReference(tokenizer);
  TestRandomVocabularies();
  TestBoundedEncoding(tokenizer);
  TestDecoding(tokenizer);
  TestUnknownIds(tokenizer);
  TestThreads(tokenizer);
  TestLinearTime(tokenizer);
  return Failures();
}
