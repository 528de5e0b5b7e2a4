// Text that comes token by token is valid UTF-8 at every moment.
#include <string>

#include "check.h"
#include "reference.h"

namespace rwkv_world::testing {
namespace {

// The pieces that a stream of single bytes gives, joined by '|'; after the last '|', Finish.
std::string Pieces(const Tokenizer& tokenizer, std::string_view bytes) {
  StreamDecoder decoder(tokenizer);
  std::string pieces;
  for (const char byte : bytes) {
    pieces += decoder.Push(tokenizer.BytesToId(std::string_view(&byte, 1))) + "|";
  }
  return pieces + decoder.Finish();
}

#define REPLACED "\xef\xbf\xbd"

void TestPieces(const Tokenizer& tokenizer) {
  CHECK_EQUAL(Pieces(tokenizer, "ab"), "a|b|");
  CHECK_EQUAL(Pieces(tokenizer, "\xc3\xa9"), "|\xc3\xa9|");
  CHECK_EQUAL(Pieces(tokenizer, "\xe6\x97\xa5"), "||\xe6\x97\xa5|");
  CHECK_EQUAL(Pieces(tokenizer, "\xf0\x9f\x98\x80"), "|||\xf0\x9f\x98\x80|");
  CHECK_EQUAL(Pieces(tokenizer, "\xf0\x9f\x98"), "|||" REPLACED);
  CHECK_EQUAL(Pieces(tokenizer,
                     "\xff"
                     "a"),
              REPLACED "|a|");
  CHECK_EQUAL(Pieces(tokenizer,
                     "\xe6\x97"
                     "a"),
              "||" REPLACED "a|");
  CHECK_EQUAL(Pieces(tokenizer, "\xe6\xe6\x97\xa5"), "|" REPLACED "||\xe6\x97\xa5|");
  CHECK_EQUAL(Pieces(tokenizer, "\x80\xc0\xaf"), REPLACED "|" REPLACED "|" REPLACED "|");
  // A surrogate, an overlong form and a code point above the last are bad from the second byte on.
  CHECK_EQUAL(Pieces(tokenizer, "\xed\xa0\x80"), "|" REPLACED REPLACED "|" REPLACED "|");
  CHECK_EQUAL(Pieces(tokenizer, "\xe0\x80"), "|" REPLACED REPLACED "|");
  CHECK_EQUAL(Pieces(tokenizer, "\xf4\x90"), "|" REPLACED REPLACED "|");
}

void TestUse(const Tokenizer& tokenizer) {
  StreamDecoder decoder(tokenizer);
  CHECK_EQUAL(decoder.Push(tokenizer.BytesToId("\xe6")), "");
  CHECK_FAILS(decoder.Push(65530), "token id 65530 does not exist");
  CHECK_EQUAL(decoder.Push(kEndOfText), "");
  CHECK_EQUAL(decoder.Push(tokenizer.BytesToId("\x97")), "");
  CHECK_EQUAL(decoder.Push(tokenizer.BytesToId("\xa5")), "\xe6\x97\xa5");
  CHECK_EQUAL(decoder.Push(tokenizer.BytesToId("\xe6")), "");
  CHECK_EQUAL(decoder.Finish(), REPLACED);
  CHECK_EQUAL(decoder.Finish(), "");
}

}  // namespace
}  // namespace rwkv_world::testing

int main(int, char** arguments) {
  using namespace rwkv_world::testing;
  const auto tokenizer = rwkv_world::Tokenizer::FromFile(arguments[1]);
  TestPieces(tokenizer);
  TestUse(tokenizer);
  return Failures();
}
