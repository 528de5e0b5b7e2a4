// Encoding any bytes with the World vocabulary: the greedy ids, and the same bytes back.
#include <cstring>
#include <memory>

#include "vocabulary_fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using rwkv_world::fuzzing::Require;
  static const auto tokenizer = rwkv_world::Tokenizer::FromFile(RWKV_WORLD_VOCABULARY);

  // A copy of exactly this size, so that a read past the end is seen.
  const std::unique_ptr<char[]> copy(new char[size]);
  if (size != 0) std::memcpy(copy.get(), data, size);
  const std::string_view text(copy.get(), size);
  const std::vector<int32_t> ids = tokenizer.Encode(text);
  Require(tokenizer.Decode(ids) == text);

  // Each token is the longest that fits: no longer beginning of the rest is one.
  std::string_view rest = text;
  for (const int32_t id : ids) {
    const std::size_t length = tokenizer.IdToBytes(id).size();
    for (std::size_t longer = length + 1; longer <= rest.size() && longer <= 128; ++longer) {
      Require(tokenizer.BytesToId(rest.substr(0, longer)) < 0);
    }
    rest.remove_prefix(length);
  }

  // A stream gives the text itself if it is valid UTF-8, and otherwise something that is.
  rwkv_world::StreamDecoder decoder(tokenizer);
  std::string streamed;
  for (const int32_t id : ids) streamed += decoder.Push(id);
  streamed += decoder.Finish();
  rwkv_world::StreamDecoder again(tokenizer);
  std::string restreamed;
  for (const int32_t id : tokenizer.Encode(streamed)) restreamed += again.Push(id);
  Require(restreamed + again.Finish() == streamed);
  return 0;
}
