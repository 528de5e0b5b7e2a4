#ifndef RWKV_WORLD_FUZZ_VOCABULARY_FUZZING_H_
#define RWKV_WORLD_FUZZ_VOCABULARY_FUZZING_H_

#include <cstdio>
#include <optional>
#include <string>

#include "require.h"
#include "rwkv_world/tokenizer.h"

namespace rwkv_world::fuzzing {

// Loads `blob`, if it can be loaded, and holds the result to what the header promises.
inline void CheckVocabulary(const std::string& blob) {
  std::optional<Tokenizer> loaded;
  try {
    loaded = Tokenizer::FromBlob(blob, "fuzzed", 0);
  } catch (const VocabularyError&) {
    return;
  }
  const Tokenizer& tokenizer = *loaded;
  const std::string serialized = tokenizer.Serialize();
  Require(Tokenizer::FromBlob(serialized, "serialized", 0).Serialize() == serialized);
  Require(tokenizer.Decode(tokenizer.Encode(blob)) == blob);
  for (std::size_t i = 1; i <= tokenizer.token_count(); ++i) {
    const auto id = static_cast<int32_t>(i);
    Require(tokenizer.BytesToId(tokenizer.IdToBytes(id)) == id);
  }
}

}  // namespace rwkv_world::fuzzing

#endif  // RWKV_WORLD_FUZZ_VOCABULARY_FUZZING_H_
