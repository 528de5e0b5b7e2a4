// The RWKV World tokenizer: greedy longest match over the bytes of a text.
//
//   const auto tokenizer = rwkv_world::Tokenizer::FromFile("tokenizer_model");
//   std::vector<int32_t> ids = tokenizer.Encode("User: hi\n\nAssistant:");
//   std::string text = tokenizer.Decode(ids);
//
// A Tokenizer never changes after construction: any number of threads may use one at the same
// time without a lock, and a copy shares the tables of its original. There is no global state.
#ifndef RWKV_WORLD_TOKENIZER_H_
#define RWKV_WORLD_TOKENIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rwkv_world {

// End of text. It stands for no bytes, and encoding never gives it.
inline constexpr int32_t kEndOfText = 0;

// Rows that the World models' embedding and head have. Ids from the number of tokens up to here
// exist in the models alone; they stand for nothing.
inline constexpr int32_t kVocabSize = 65536;

// Tokens of the World vocabulary, which have the ids 1 to 65529.
inline constexpr std::size_t kWorldTokens = 65529;

// The longest token that a vocabulary may have. Encoding looks at each byte of the text at most
// this many times, which makes its time linear for every vocabulary and every text.
inline constexpr std::size_t kMaxTokenBytes = 255;

// The largest file that is read as a vocabulary. As `tokenizer_model`, every vocabulary fits.
inline constexpr std::size_t kMaxVocabularyFile = std::size_t{32} << 20;

// A vocabulary that cannot be used, or a token id that it does not have. The message names the
// file and the line or offset.
class VocabularyError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Tokenizer {
 public:
  // Reads a vocabulary in either of its two forms, told apart by content:
  //
  //   text     `id literal length` on each line, LF or CRLF, the literal being a Python str or
  //            bytes literal (it is parsed, never evaluated);
  //   msgpack  a map from ids to bytes, the usual content of a file named `tokenizer_model`.
  //
  // The ids must run from 1 without a gap, no two tokens may be the same, and every single byte
  // must be a token, so that encoding cannot fail. A vocabulary with less than `min_tokens` tokens
  // is refused as truncated, a file of more than kMaxVocabularyFile bytes unread. Throws
  // VocabularyError.
  static Tokenizer FromFile(const std::string& path, std::size_t min_tokens = kWorldTokens);

  // The same from memory. `name` stands for the path in messages.
  static Tokenizer FromBlob(std::string_view blob, const std::string& name = "vocabulary",
                            std::size_t min_tokens = kWorldTokens);

  // The same from pairs of id and bytes, in any order and of any number.
  static Tokenizer FromTokens(const std::vector<std::pair<int32_t, std::string_view>>& tokens,
                              const std::string& name = "vocabulary");

  // Any bytes can be encoded, and Decode(Encode(text)) == text.
  std::vector<int32_t> Encode(std::string_view text) const;

  // Writes the ids to `ids`, which must have room for text.size() of them, and returns how many
  // there are. Memory behind the last id is left alone.
  std::size_t Encode(std::string_view text, int32_t* ids) const noexcept;

  // Encodes from byte `*position` on until the text ends or `capacity` ids are written; returns
  // how many were and moves `*position` behind the last token. For bounded buffers: the ids of all
  // calls together are those of one call of Encode.
  std::size_t EncodeSome(std::string_view text, std::size_t* position, int32_t* ids,
                         std::size_t capacity) const noexcept;

  // The bytes of the tokens, which need not be valid UTF-8. Throws VocabularyError at an id that
  // is neither 0 nor a token's.
  std::string Decode(const int32_t* ids, std::size_t count) const;
  std::string Decode(const std::vector<int32_t>& ids) const {
    return Decode(ids.data(), ids.size());
  }

  // Decodes from id `*position` on until the ids end or the next token does not fit into
  // `capacity` bytes; returns how many bytes were written and moves `*position` behind the last
  // token. Room for kMaxTokenBytes is enough for any token; more may be overwritten than the
  // result says, up to `capacity`. Throws as Decode does and leaves `*position` as it is.
  std::size_t DecodeSome(const int32_t* ids, std::size_t count, std::size_t* position, char* bytes,
                         std::size_t capacity) const;

  // The bytes of one token, valid as long as any copy of this tokenizer; empty for id 0. Throws
  // VocabularyError at any other id that is not a token's.
  std::string_view IdToBytes(int32_t id) const;

  // The id of the token with exactly these bytes, or -1.
  int32_t BytesToId(std::string_view bytes) const noexcept;

  // Tokens in the vocabulary: the largest id that encoding can give.
  std::size_t token_count() const noexcept;

  // The vocabulary in its msgpack form, in the order of the ids.
  std::string Serialize() const;

 private:
  struct Tables;
  explicit Tokenizer(std::shared_ptr<const Tables> tables) : tables_(std::move(tables)) {}

  std::shared_ptr<const Tables> tables_;
};

// Turns ids that come one by one into text that can be shown at once. Not for several threads at
// the same time; each stream has a decoder of its own.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  // The text that `id` completes, always valid UTF-8: a character whose bytes have not all come is
  // held back, and bytes that can no longer become one are replaced by U+FFFD (one for each
  // maximal subpart, as Unicode recommends). Throws VocabularyError as Tokenizer::IdToBytes does,
  // and is then unchanged.
  std::string Push(int32_t id);

  // U+FFFD if a character was left unfinished, otherwise nothing. The decoder can then be used
  // for another text.
  std::string Finish();

 private:
  Tokenizer tokenizer_;
  std::string pending_;  // the first bytes of a character, at most three
};

}  // namespace rwkv_world

#endif  // RWKV_WORLD_TOKENIZER_H_
