// The adapter through tokenizers-cpp's own interface.
#include <tokenizers_cpp.h>

#include <fstream>

#include "check.h"

namespace rwkv_world::testing {
namespace {

void TestInterface(tokenizers::Tokenizer* tokenizer) {
  const std::vector<int32_t> ids = {24281, 59, 4571, 261, 5585, 41693, 59};
  CHECK(tokenizer->Encode("User: hi\n\nAssistant:") == ids);
  CHECK_EQUAL(tokenizer->Decode(ids), "User: hi\n\nAssistant:");
  CHECK(tokenizer->EncodeBatch({"User:", ""}) ==
        (std::vector<std::vector<int32_t>>{{24281, 59}, {}}));
  CHECK_EQUAL(tokenizer->GetVocabSize(), std::size_t{65536});
  CHECK_EQUAL(tokenizer->IdToToken(65529), std::string(128, ' '));
  CHECK_EQUAL(tokenizer->TokenToId(std::string(128, ' ')), 65529);
  CHECK_EQUAL(tokenizer->TokenToId("no such token"), -1);
  for (const int32_t id : {-1, 0, 65530, 65535, 65536}) {
    CHECK_EQUAL(tokenizer->IdToToken(id), "");
    CHECK_EQUAL(tokenizer->Decode({24281, id, 59}), "User:");
  }
}

}  // namespace
}  // namespace rwkv_world::testing

int main(int, char** arguments) {
  using namespace rwkv_world::testing;
  using tokenizers::Tokenizer;
  TestInterface(Tokenizer::FromBlobRWKVWorld(arguments[1]).get());

  std::ifstream file(arguments[1], std::ios::binary);
  const std::string blob{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  TestInterface(Tokenizer::FromBlobRWKVWorld(blob).get());

  CHECK_FAILS(Tokenizer::FromBlobRWKVWorld(""), ": No such file");
  CHECK_FAILS(Tokenizer::FromBlobRWKVWorld("/nowhere/vocabulary"),
              "/nowhere/vocabulary: No such file");
  CHECK_FAILS(Tokenizer::FromBlobRWKVWorld(blob.substr(0, 1000)), "the file ends after 1000 bytes");
  return Failures();
}
