#include "rwkv_world/tokenizer.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iterator>

#include "trie.h"
#include "vocabulary.h"

namespace rwkv_world {
namespace {

// A token as decoding reads it: one load from one line of the cache gives the bytes of nearly all
// tokens. The others have their bytes in the vocabulary alone.
struct alignas(16) Slot {
  static constexpr std::size_t kBytes = 15;

  char bytes[kBytes];
  uint8_t length;
};
static_assert(sizeof(Slot) == 16 && kMaxTokenBytes <= 0xff);

// Decoding asks for a slot this many ids before it is needed, since slots do not all fit the
// nearer caches.
constexpr std::size_t kLookAhead = 24;

void Prefetch([[maybe_unused]] const Slot* slot) {
#if defined(__GNUC__)
  __builtin_prefetch(slot);
#endif
}

std::string ReadFile(const std::string& path) {
  errno = 0;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  std::string content;
  std::vector<char> buffer(1 << 16);
  while (file != nullptr) {
    const std::size_t size = std::fread(buffer.data(), 1, buffer.size(), file.get());
    if (size == 0) break;
    content.append(buffer.data(), size);
    // Its size alone would not tell: a device has none.
    if (content.size() > kMaxVocabularyFile) {
      throw VocabularyError(path + " has more than " + std::to_string(kMaxVocabularyFile) +
                            " bytes, which no vocabulary has; " + kFreshCopy);
    }
  }
  if (file == nullptr || std::ferror(file.get()) != 0) {
    throw VocabularyError(path + ": " + std::strerror(errno) +
                          "; expected a vocabulary as text or as tokenizer_model");
  }
  return content;
}

}  // namespace

struct Tokenizer::Tables {
  explicit Tables(Vocabulary checked) : vocabulary(std::move(checked)), trie(vocabulary) {
    vocabulary.sorted = {};
    vocabulary.bytes.shrink_to_fit();
    for (std::size_t id = 1; id <= vocabulary.token_count; ++id) {
      const std::string_view token = vocabulary.token(id);
      token.copy(slots[id].bytes, Slot::kBytes);
      slots[id].length = static_cast<uint8_t>(token.size());
    }
  }

  int32_t last_id() const { return static_cast<int32_t>(vocabulary.token_count); }
  bool Has(int32_t id) const { return id >= 0 && id <= last_id(); }

  void Copy(std::size_t id, char* bytes) const {
    const Span span = vocabulary.spans[id];
    std::memcpy(bytes, vocabulary.bytes.data() + span.offset(), span.length());
  }

  [[noreturn]] void FailUnknownId(int32_t id) const {
    throw VocabularyError("token id " + std::to_string(id) +
                          " does not exist; the vocabulary has the ids 0 to " +
                          std::to_string(last_id()));
  }

  Vocabulary vocabulary;
  Trie trie;
  std::vector<Slot> slots = std::vector<Slot>(kVocabSize);  // by any id of 16 bits
};

Tokenizer Tokenizer::FromFile(const std::string& path, std::size_t min_tokens) {
  return FromBlob(ReadFile(path), path, min_tokens);
}

Tokenizer Tokenizer::FromBlob(std::string_view blob, const std::string& name,
                              std::size_t min_tokens) {
  return Tokenizer(std::make_shared<Tables>(ParseVocabulary(blob, name, min_tokens)));
}

Tokenizer Tokenizer::FromTokens(const std::vector<std::pair<int32_t, std::string_view>>& tokens,
                                const std::string& name) {
  VocabularyBuilder builder(name, "entry", "give ids from 1 without a gap, and every single byte");
  std::size_t position = 0;
  for (const auto& [id, bytes] : tokens) {
    if (id < 0) builder.Fail(position, "token id " + std::to_string(id) + " is below 1");
    builder.Add(static_cast<uint64_t>(id), bytes, position++);
  }
  return Tokenizer(std::make_shared<Tables>(builder.Finish(0)));
}

std::size_t Tokenizer::EncodeSome(std::string_view text, std::size_t* position, int32_t* ids,
                                  std::size_t capacity) const noexcept {
  const Trie& trie = tables_->trie;
  const char* head = text.data() + *position;
  const char* const end = text.data() + text.size();
  std::size_t count = 0;
  while (head != end && count != capacity) {
    const Trie::Match match = trie.LongestPrefix(head, end);
    ids[count++] = match.id;
    head = match.end;
  }
  *position = static_cast<std::size_t>(head - text.data());
  return count;
}

std::size_t Tokenizer::Encode(std::string_view text, int32_t* ids) const noexcept {
  std::size_t position = 0;
  return EncodeSome(text, &position, ids, text.size());
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  int32_t buffer[1024];
  std::vector<int32_t> ids;
  for (std::size_t position = 0; position < text.size();) {
    const std::size_t count = EncodeSome(text, &position, buffer, std::size(buffer));
    ids.insert(ids.end(), buffer, buffer + count);
  }
  return ids;
}

std::size_t Tokenizer::DecodeSome(const int32_t* ids, std::size_t count, std::size_t* position,
                                  char* bytes, std::size_t capacity) const {
  const Tables& tables = *tables_;
  const Slot* const slots = tables.slots.data();
  const auto last = static_cast<uint32_t>(tables.last_id());
  // Its sign bit is set once an id was below 0 or above the last: cheaper than a test for each.
  uint32_t unknown = 0;
  std::size_t i = *position;
  std::size_t size = 0;
  // Where any token fits, so does a whole slot: what it writes behind the token's end is
  // overwritten by the next token, or is nobody's.
  for (; i < count && capacity - size >= kMaxTokenBytes; ++i) {
    Prefetch(slots + static_cast<uint16_t>(ids[std::min(i + kLookAhead, count - 1)]));
    const auto id = static_cast<uint32_t>(ids[i]);
    unknown |= id | (last - id);
    const Slot& slot = slots[static_cast<uint16_t>(id)];
    std::memcpy(bytes + size, &slot, sizeof(slot));
    if (slot.length > Slot::kBytes) tables.Copy(static_cast<uint16_t>(id), bytes + size);
    size += slot.length;
  }
  for (; i < count; ++i) {
    const auto id = static_cast<uint32_t>(ids[i]);
    const std::size_t length = slots[static_cast<uint16_t>(id)].length;
    if (length > capacity - size) break;
    unknown |= id | (last - id);
    tables.Copy(static_cast<uint16_t>(id), bytes + size);
    size += length;
  }
  if (unknown >> 31 != 0) {
    tables.FailUnknownId(
        *std::find_if_not(ids + *position, ids + i, [&](int32_t id) { return tables.Has(id); }));
  }
  *position = i;
  return size;
}

std::string Tokenizer::Decode(const int32_t* ids, std::size_t count) const {
  char buffer[4096];
  std::string bytes;
  for (std::size_t position = 0; position < count;) {
    bytes.append(buffer, DecodeSome(ids, count, &position, buffer, sizeof(buffer)));
  }
  return bytes;
}

std::string_view Tokenizer::IdToBytes(int32_t id) const {
  if (!tables_->Has(id)) tables_->FailUnknownId(id);
  return tables_->vocabulary.token(static_cast<std::size_t>(id));
}

int32_t Tokenizer::BytesToId(std::string_view bytes) const noexcept {
  return tables_->trie.Find(bytes);
}

std::size_t Tokenizer::token_count() const noexcept { return tables_->vocabulary.token_count; }

std::string Tokenizer::Serialize() const { return ToMsgpack(tables_->vocabulary); }

}  // namespace rwkv_world
