// Vocabularies as they come out of files: checked, and stored by id.
#ifndef RWKV_WORLD_SRC_VOCABULARY_H_
#define RWKV_WORLD_SRC_VOCABULARY_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rwkv_world/tokenizer.h"

namespace rwkv_world {

// Where a token stands in Vocabulary::bytes. One word, so that decoding finds a token with one
// load.
class Span {
 public:
  Span() = default;
  Span(std::size_t offset, std::size_t length)
      : packed_(static_cast<uint32_t>(offset << 8 | length)) {}

  std::size_t offset() const { return packed_ >> 8; }
  std::size_t length() const { return packed_ & 0xff; }

 private:
  uint32_t packed_ = 0;
};
static_assert(kMaxTokenBytes <= 0xff && kVocabSize * kMaxTokenBytes <= std::size_t{1} << 24);

struct Vocabulary {
  std::string bytes;
  std::size_t token_count = 0;
  std::vector<Span> spans;       // by any id of 16 bits; empty where there is no token
  std::vector<uint16_t> sorted;  // the tokens' ids in the order of their bytes

  std::string_view token(std::size_t id) const {
    return std::string_view(bytes).substr(spans[id].offset(), spans[id].length());
  }
};

// Collects the tokens of one source in any order.
class VocabularyBuilder {
 public:
  // Messages are "<name>, <unit> <position>: <problem>; <advice>".
  VocabularyBuilder(std::string name, std::string unit, std::string advice)
      : name_(std::move(name)), unit_(std::move(unit)), advice_(std::move(advice)) {}

  // `position` says where the token stands: the line or the offset.
  void Add(uint64_t id, std::string_view bytes, std::size_t position);

  // Checks the whole and puts it in order.
  Vocabulary Finish(std::size_t min_tokens) const;

  [[noreturn]] void Fail(std::size_t position, const std::string& problem) const;

 private:
  std::vector<uint16_t> SortByBytes(const Vocabulary& vocabulary) const;

  struct Entry {
    std::size_t offset = 0;
    std::size_t position = 0;
    std::size_t length = 0;  // no token is empty: 0 says that the id has not been seen
  };

  std::string name_;
  std::string unit_;
  std::string advice_;
  std::string bytes_;
  std::vector<Entry> entries_;  // by id
  std::size_t count_ = 0;
  std::size_t last_position_ = 0;
};

// What to do about a damaged file.
inline constexpr char kFreshCopy[] = "take a fresh copy of the vocabulary";

// Both throw VocabularyError, naming `name` and the line or offset.
Vocabulary ParseText(std::string_view blob, const std::string& name, std::size_t min_tokens);
Vocabulary ParseMsgpack(std::string_view blob, const std::string& name, std::size_t min_tokens);

// Either of the two, by the first byte.
Vocabulary ParseVocabulary(std::string_view blob, const std::string& name, std::size_t min_tokens);

std::string ToMsgpack(const Vocabulary& vocabulary);

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SRC_VOCABULARY_H_
