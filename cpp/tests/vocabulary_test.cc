// Both forms of a vocabulary: what is read, and what is refused with which message.
#include <cstdio>
#include <fstream>
#include <string>

#include "check.h"
#include "reference.h"

namespace rwkv_world::testing {
namespace {

constexpr std::size_t kAny = 0;

std::string Hex(int byte) {
  char digits[3];
  std::snprintf(digits, sizeof(digits), "%02x", static_cast<unsigned>(byte));
  return digits;
}

// The 256 single bytes, ids 1 to 256.
std::string TextBase(const std::string& newline = "\n") {
  std::string text;
  for (int byte = 0; byte < 256; ++byte) {
    text += std::to_string(byte + 1) + " b'\\x" + Hex(byte) + "' 1" + newline;
  }
  return text;
}

std::string MsgpackEntries() {
  std::string blob;
  for (int byte = 0; byte < 256; ++byte) {
    const int id = byte + 1;
    blob += '\xcd';
    blob += static_cast<char>(id >> 8);
    blob += static_cast<char>(id & 0xff);
    blob += "\xc4\x01";
    blob += static_cast<char>(byte);
  }
  return blob;
}

// The same as a map that says it has `count` entries, with `more` behind the 256.
std::string Msgpack(int count, const std::string& more = "") {
  std::string blob = "\xde";
  blob += static_cast<char>(count >> 8);
  blob += static_cast<char>(count & 0xff);
  return blob + MsgpackEntries() + more;
}

Tokenizer Load(const std::string& blob, std::size_t min_tokens = kAny) {
  return Tokenizer::FromBlob(blob, "v", min_tokens);
}

void TestText() {
  const std::string more =
      "257 'a b' 3\n"
      "258 \"it's\" 4\n"
      "259 'it\\'s \\\"so\\\"' 9\n"
      "260 '\\u00e9\\U0001f600\\xe9\\t\\n\\r\\\\' 12\n"
      "261 b'\\xe9\\'\\101' 3\n"
      "262 '\xe6\x97\xa5' 3\n"
      "263 '\\a\\b\\f\\v\\1\\12' 6\n";
  for (const bool crlf : {false, true}) {
    std::string text = TextBase() + more;
    if (crlf) {
      for (std::size_t at = 0; (at = text.find('\n', at)) != std::string::npos; at += 2) {
        text.insert(at, "\r");
      }
    }
    for (const bool last_newline : {true, false}) {
      if (!last_newline) text.resize(text.size() - (crlf ? 2 : 1));
      const Tokenizer tokenizer = Load(text);
      CHECK_EQUAL(tokenizer.token_count(), std::size_t{263});
      CHECK_EQUAL(tokenizer.IdToBytes(1), std::string_view("\0", 1));
      CHECK_EQUAL(tokenizer.IdToBytes(256), "\xff");
      CHECK_EQUAL(tokenizer.IdToBytes(257), "a b");
      CHECK_EQUAL(tokenizer.IdToBytes(258), "it's");
      CHECK_EQUAL(tokenizer.IdToBytes(259), "it's \"so\"");
      CHECK_EQUAL(tokenizer.IdToBytes(260), "\xc3\xa9\xf0\x9f\x98\x80\xc3\xa9\t\n\r\\");
      CHECK_EQUAL(tokenizer.IdToBytes(261), "\xe9'A");
      CHECK_EQUAL(tokenizer.IdToBytes(262), "\xe6\x97\xa5");
      CHECK_EQUAL(tokenizer.IdToBytes(263), "\a\b\f\v\1\n");
    }
  }
}

void TestBadText() {
  const auto add = [](const std::string& line) { return Load(TextBase() + line + "\n"); };
  CHECK_FAILS(Load(""), "v is empty");
  CHECK_FAILS(Load("\n"), "v, line 1: expected `id literal length`, found the end of the line");
  CHECK_FAILS(Load("garbage"), "v, line 1: expected `id literal length`, found byte 103");
  CHECK_FAILS(Load("\xff\xfe"), "v, line 1: expected `id literal length`, found byte 255");
  CHECK_FAILS(add(""), "v, line 257: expected `id literal length`");
  CHECK_FAILS(add("257"), "line 257: expected a space, found the end of the line");
  CHECK_FAILS(add("257 "), "expected a quoted str or bytes literal, found the end of the line");
  CHECK_FAILS(add("257 x 1"), "expected a quoted str or bytes literal, found byte 120");
  CHECK_FAILS(add("257 b"), "expected a quoted str or bytes literal");
  CHECK_FAILS(add("257 'ab"), "line 257: the literal has no closing quote");
  CHECK_FAILS(add("257 'ab\\"), "the literal has no closing quote");
  CHECK_FAILS(add("257 'ab'"), "expected a space, found the end of the line");
  CHECK_FAILS(add("257 'ab' "), "expected `id literal length`, found the end of the line");
  CHECK_FAILS(add("257 'ab' 3"), "the literal has 2 bytes, and the line says 3");
  CHECK_FAILS(add("257 'ab' 2 "), "expected the end of the line, found byte 32");
  CHECK_FAILS(add("257 'ab' 1234567890123456789"), "a number has too many digits");
  CHECK_FAILS(add("257 'a\\q' 2"), "unknown escape");
  CHECK_FAILS(add("257 'a\\N{DASH}' 2"), "unknown escape");
  CHECK_FAILS(add("257 b'a\\u0041' 2"), "unknown escape");
  CHECK_FAILS(add("257 'a\\x4' 2"), "an escape with too few digits");
  CHECK_FAILS(add("257 'a\\u004' 2"), "an escape with too few digits");
  CHECK_FAILS(add("257 'a\\ud800' 4"), "an escape that is no character");
  CHECK_FAILS(add("257 'a\\U00110000' 4"), "an escape that is no character");
  CHECK_FAILS(add("257 b'a\\777' 2"), "an escape above 255");
  CHECK_FAILS(add("257 'a\xe6\x97' 3"), "the literal is not valid UTF-8");
  CHECK_FAILS(add("257 b'a\xe6\x97\xa5' 4"), "a byte that is not ASCII");
  CHECK_FAILS(add("257 '' 0"), "line 257: token id 257 has no bytes");
  CHECK_FAILS(add("0 'ab' 2"), "line 257: token id 0 is reserved for the end of text");
  CHECK_FAILS(add("65536 'ab' 2"), "line 257: token id 65536 is above 65535");
  CHECK_FAILS(add("256 'ab' 2"), "line 257: token id 256 was given before, at line 256");
  CHECK_FAILS(add("257 'A' 1"),
              "line 257: token id 257 has the same bytes as token id 66, at line 66");
  CHECK_FAILS(add("258 'ab' 2"), "line 257: the vocabulary ends here without token id 257");
  CHECK_FAILS(add("257 '" + std::string(256, 'a') + "' 256"), "has 256 bytes, more than 255");
  CHECK_FAILS(Load("1 'a' 1\n"), "line 1: the vocabulary ends here without a token for the single");
  CHECK_FAILS(Load(TextBase(), 300),
              "line 256: the vocabulary ends here with 256 tokens, and at least 300 are expected");
}

void TestMsgpack() {
  CHECK_EQUAL(Load(Msgpack(256)).token_count(), std::size_t{256});
  CHECK_EQUAL(Load(std::string("\xdf\0\0\1\0", 5) + MsgpackEntries()).token_count(),
              std::size_t{256});

  // Every way to write the key 257 and the value "ab".
  const std::vector<std::string> keys = {
      std::string("\xcd\1\1", 3),
      std::string("\xce\0\0\1\1", 5),
      std::string("\xcf\0\0\0\0\0\0\1\1", 9),
      std::string("\xd1\1\1", 3),
      std::string("\xd2\0\0\1\1", 5),
      std::string("\xd3\0\0\0\0\0\0\1\1", 9),
  };
  const std::vector<std::string> values = {
      "\xa2"
      "ab",
      "\xc4\2"
      "ab",
      std::string("\xc5\0\2ab", 5),
      std::string("\xc6\0\0\0\2ab", 7),
      "\xd9\2"
      "ab",
      std::string("\xda\0\2ab", 5),
      std::string("\xdb\0\0\0\2ab", 7),
  };
  for (const std::string& key : keys) {
    for (const std::string& value : values) {
      CHECK_EQUAL(Load(Msgpack(257, key + value)).IdToBytes(257), "ab");
    }
  }

  const std::string blob = Msgpack(257, std::string("\xcd\1\1\xc4\2"
                                                    "ab",
                                                    7));
  CHECK(Load(blob).Serialize() == Load(Load(blob).Serialize()).Serialize());
}

void TestBadMsgpack() {
  const auto add = [](const std::string& more) { return Load(Msgpack(257, more)); };
  CHECK_FAILS(Load(Msgpack(256).substr(0, 2)), "v, offset 1: the file ends after 2 bytes");
  CHECK_FAILS(Load(Msgpack(256).substr(0, 700)), ": the file ends after 700 bytes");
  CHECK_FAILS(Load(Msgpack(256, "x")), "offset 1539: 1 bytes follow the end of the map");
  CHECK_FAILS(Load("\x80"), "offset 0: the vocabulary ends here without a token for the single");
  CHECK_FAILS(Load("\x80", 1), "offset 0: the vocabulary ends here with 0 tokens");
  CHECK_FAILS(add("\xc0\xa1"
                  "a"),
              "offset 1539: expected a token id, found a value that starts");
  CHECK_FAILS(add("\xff\xa1"
                  "a"),
              "offset 1539: expected a token id");
  CHECK_FAILS(add("\xd1\xff\xff\xa1"
                  "a"),
              "offset 1539: expected a token id");
  CHECK_FAILS(add("\xcd\1\1\xc0"), "offset 1542: expected the bytes of a token");
  CHECK_FAILS(add("\xcd\1\1\xc6\xff\xff\xff\xff"), "offset 1547: the file ends after 1547 bytes");
  CHECK_FAILS(add("\xcd\1\1\xa0"), "offset 1539: token id 257 has no bytes");
  CHECK_FAILS(add("\xcd\1\1\xa1"
                  "A"),
              "offset 1539: token id 257 has the same bytes as token id 66");
  CHECK_FAILS(add(std::string("\xcd\1\0\xa2"
                              "ab",
                              6)),
              "token id 256 was given before, at offset");
  CHECK_FAILS(add(std::string("\0\xa2"
                              "ab",
                              4)),
              "token id 0 is reserved");
  CHECK_FAILS(add("\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xa2"
                  "ab"),
              "is above 65535");
  CHECK_FAILS(Load(Msgpack(256), kWorldTokens), "256 tokens, and at least 65529 are expected");
}

void TestFiles(const std::string& world) {
  const Tokenizer tokenizer = Tokenizer::FromFile(world);
  CHECK_EQUAL(tokenizer.token_count(), kWorldTokens);
  std::ifstream file(world, std::ios::binary);
  const std::string blob{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  CHECK(tokenizer.Serialize() == blob);
  CHECK_FAILS(Tokenizer::FromFile("/nowhere/vocabulary"), "/nowhere/vocabulary: No such file");
  CHECK_FAILS(Tokenizer::FromFile("/"), "/: Is a directory");
  CHECK_FAILS(Tokenizer::FromFile("/dev/zero"), "/dev/zero has more than 33554432 bytes");
}

void TestTokens() {
  const std::vector<std::string> strings = SingleBytes();
  Tokens tokens = Number(strings);
  std::reverse(tokens.begin(), tokens.end());
  CHECK_EQUAL(Tokenizer::FromTokens(tokens).BytesToId("A"), 66);
  tokens.emplace_back(-1, "ab");
  CHECK_FAILS(Tokenizer::FromTokens(tokens, "v"), "v, entry 256: token id -1 is below 1; give ids");
  CHECK_FAILS(Tokenizer::FromTokens({}), "vocabulary, entry 0: the vocabulary ends here without");
}

}  // namespace
}  // namespace rwkv_world::testing

int main(int, char** arguments) {
  using namespace rwkv_world::testing;
  TestText();
  TestBadText();
  TestMsgpack();
  TestBadMsgpack();
  TestFiles(arguments[1]);
  TestTokens();
  return Failures();
}
