// tokenizers-cpp's interface on our tokenizer, and its factory for the World vocabulary.
#include <tokenizers_cpp.h>

#include "rwkv_world/tokenizer.h"

namespace tokenizers {
namespace {

class RwkvWorldAdapter final : public Tokenizer {
 public:
  explicit RwkvWorldAdapter(rwkv_world::Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  std::vector<int32_t> Encode(const std::string& text) override { return tokenizer_.Encode(text); }

  // Ids that stand for nothing are left out, since callers decode whatever a model has sampled.
  std::string Decode(const std::vector<int32_t>& ids) override {
    std::string text;
    for (const int32_t id : ids) text += Bytes(id);
    return text;
  }

  // Every id that a model can sample: tables of this size have a place for it.
  size_t GetVocabSize() override { return rwkv_world::kVocabSize; }

  std::string IdToToken(int32_t token_id) override { return std::string(Bytes(token_id)); }

  int32_t TokenToId(const std::string& token) override { return tokenizer_.BytesToId(token); }

 private:
  std::string_view Bytes(int32_t id) const {
    const bool is_token = id > 0 && static_cast<std::size_t>(id) <= tokenizer_.token_count();
    return is_token ? tokenizer_.IdToBytes(id) : std::string_view();
  }

  rwkv_world::Tokenizer tokenizer_;
};

// Every vocabulary holds one or the other: the token for byte 0, or the end of a line.
bool IsVocabulary(const std::string& path_or_blob) {
  return path_or_blob.find_first_of(std::string("\0\n", 2)) != std::string::npos;
}

}  // namespace

// The built-in factory takes a path where its name says blob; callers have either.
std::unique_ptr<Tokenizer> Tokenizer::FromBlobRWKVWorld(const std::string& model_blob) {
  return std::make_unique<RwkvWorldAdapter>(IsVocabulary(model_blob)
                                                ? rwkv_world::Tokenizer::FromBlob(model_blob)
                                                : rwkv_world::Tokenizer::FromFile(model_blob));
}

}  // namespace tokenizers
