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

// A copy of this size is two instructions; most tokens are shorter.
constexpr std::size_t kShortCopy = 16;

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
    // Lets DecodeTo read past the last token.
    vocabulary.bytes.append(kShortCopy, '\0');
    vocabulary.bytes.shrink_to_fit();
  }

  int32_t last_id() const { return static_cast<int32_t>(vocabulary.token_count); }
  bool Has(int32_t id) const { return id >= 0 && id <= last_id(); }
  Span span(int32_t id) const { return vocabulary.spans[static_cast<uint16_t>(id)]; }

  [[noreturn]] void FailUnknownId(int32_t id) const {
    throw VocabularyError("token id " + std::to_string(id) +
                          " does not exist; the vocabulary has the ids 0 to " +
                          std::to_string(last_id()));
  }

  Vocabulary vocabulary;
  Trie trie;
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

std::size_t Tokenizer::DecodedSize(const int32_t* ids, std::size_t count) const {
  const Tables& tables = *tables_;
  const auto last = static_cast<uint32_t>(tables.last_id());
  std::size_t size = 0;
  // Its sign bit is set once an id was below 0 or above the last: cheaper than a test for each.
  uint32_t unknown = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto id = static_cast<uint32_t>(ids[i]);
    unknown |= id | (last - id);
    size += tables.span(ids[i]).length();
  }
  if (unknown >> 31 != 0) {
    tables.FailUnknownId(
        *std::find_if_not(ids, ids + count, [&](int32_t id) { return tables.Has(id); }));
  }
  return size;
}

void Tokenizer::DecodeTo(const int32_t* ids, std::size_t count, char* bytes) const noexcept {
  // Local, since the compiler must assume that a write to `bytes` changes a member.
  const char* const tokens = tables_->vocabulary.bytes.data();
  const Span* const spans = tables_->vocabulary.spans.data();
  // A short copy writes more than the token. Where kShortCopy bytes follow, that is harmless: the
  // next tokens overwrite it.
  std::size_t safe = count;
  for (std::size_t behind = 0; safe > 0 && behind < kShortCopy;) {
    behind += spans[ids[--safe]].length();
  }
  for (std::size_t i = 0; i < safe; ++i) {
    const Span span = spans[ids[i]];
    std::memcpy(bytes, tokens + span.offset(), kShortCopy);
    if (span.length() > kShortCopy) std::memcpy(bytes, tokens + span.offset(), span.length());
    bytes += span.length();
  }
  for (std::size_t i = safe; i < count; ++i) {
    const Span span = spans[ids[i]];
    std::memcpy(bytes, tokens + span.offset(), span.length());
    bytes += span.length();
  }
}

std::string Tokenizer::Decode(const int32_t* ids, std::size_t count) const {
  std::string bytes(DecodedSize(ids, count), '\0');
  DecodeTo(ids, count, bytes.data());
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
