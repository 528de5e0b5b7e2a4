#include "vocabulary.h"

#include <algorithm>
#include <array>

namespace rwkv_world {
namespace {

constexpr uint64_t kMaxId = kVocabSize - 1;

}  // namespace

void VocabularyBuilder::Fail(std::size_t position, const std::string& problem) const {
  throw VocabularyError(name_ + ", " + unit_ + " " + std::to_string(position) + ": " + problem +
                        "; " + advice_);
}

void VocabularyBuilder::Add(uint64_t id, std::string_view bytes, std::size_t position) {
  const auto fail = [&](const std::string& problem) {
    Fail(position, "token id " + std::to_string(id) + problem);
  };
  if (id == static_cast<uint64_t>(kEndOfText)) fail(" is reserved for the end of text");
  if (id > kMaxId) fail(" is above " + std::to_string(kMaxId));
  if (bytes.empty()) fail(" has no bytes");
  if (bytes.size() > kMaxTokenBytes) {
    fail(" has " + std::to_string(bytes.size()) + " bytes, more than " +
         std::to_string(kMaxTokenBytes));
  }
  if (id >= entries_.size()) entries_.resize(id + 1);
  Entry& entry = entries_[id];
  if (entry.length != 0) {
    fail(" was given before, at " + unit_ + " " + std::to_string(entry.position));
  }
  entry = {bytes_.size(), position, bytes.size()};
  bytes_ += bytes;
  ++count_;
  last_position_ = position;
}

Vocabulary VocabularyBuilder::Finish(std::size_t min_tokens) const {
  if (count_ < min_tokens) {
    Fail(last_position_, "the vocabulary ends here with " + std::to_string(count_) +
                             " tokens, and at least " + std::to_string(min_tokens) +
                             " are expected");
  }
  Vocabulary vocabulary;
  vocabulary.bytes.reserve(bytes_.size());
  vocabulary.token_count = count_;
  vocabulary.spans.resize(kMaxId + 1);
  std::array<bool, 256> is_token{};
  for (std::size_t id = 1; id < entries_.size(); ++id) {
    const Entry& entry = entries_[id];
    if (entry.length == 0) {
      Fail(last_position_, "the vocabulary ends here without token id " + std::to_string(id) +
                               ", and ids run to " + std::to_string(entries_.size() - 1));
    }
    const std::string_view token = std::string_view(bytes_).substr(entry.offset, entry.length);
    if (token.size() == 1) is_token[static_cast<uint8_t>(token[0])] = true;
    vocabulary.spans[id] = Span(vocabulary.bytes.size(), token.size());
    vocabulary.bytes += token;
  }
  for (std::size_t byte = 0; byte < is_token.size(); ++byte) {
    if (!is_token[byte]) {
      Fail(last_position_,
           "the vocabulary ends here without a token for the single byte " + std::to_string(byte));
    }
  }
  vocabulary.sorted = SortByBytes(vocabulary);
  return vocabulary;
}

std::vector<uint16_t> VocabularyBuilder::SortByBytes(const Vocabulary& vocabulary) const {
  struct Key {
    uint64_t head;  // the first eight bytes, big-endian, which decide most comparisons
    std::string_view bytes;
    uint16_t id;
  };
  std::vector<Key> keys;
  keys.reserve(vocabulary.token_count);
  for (std::size_t id = 1; id <= vocabulary.token_count; ++id) {
    const std::string_view bytes = vocabulary.token(id);
    uint64_t head = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      head = head << 8 | (i < bytes.size() ? static_cast<uint8_t>(bytes[i]) : 0);
    }
    keys.push_back({head, bytes, static_cast<uint16_t>(id)});
  }
  std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
    return a.head != b.head ? a.head < b.head : a.bytes < b.bytes;
  });

  std::vector<uint16_t> ids;
  ids.reserve(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (i > 0 && keys[i].bytes == keys[i - 1].bytes) {
      const auto [first, second] = std::minmax(keys[i - 1].id, keys[i].id);
      Fail(entries_[second].position, "token id " + std::to_string(second) +
                                          " has the same bytes as token id " +
                                          std::to_string(first) + ", at " + unit_ + " " +
                                          std::to_string(entries_[first].position));
    }
    ids.push_back(keys[i].id);
  }
  return ids;
}

Vocabulary ParseVocabulary(std::string_view blob, const std::string& name, std::size_t min_tokens) {
  if (blob.empty()) {
    throw VocabularyError(name + " is empty; " + kFreshCopy);
  }
  // A msgpack map starts with 0x80 to 0x8f, 0xde or 0xdf, which no text in UTF-8 does.
  const auto first = static_cast<uint8_t>(blob[0]);
  if ((first & 0xf0) == 0x80 || first == 0xde || first == 0xdf) {
    return ParseMsgpack(blob, name, min_tokens);
  }
  return ParseText(blob, name, min_tokens);
}

}  // namespace rwkv_world
