#include "utf8.h"

namespace rwkv_world {

Utf8Head ReadUtf8(std::string_view bytes) {
  const auto lead = static_cast<uint8_t>(bytes[0]);
  if (lead < 0x80) return {Utf8Head::kCharacter, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Utf8Head::kInvalid, 1};
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // The second byte has a narrower range behind the leads that could start an overlong form, a
  // surrogate, or a code point above 0x10ffff.
  const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Head::kIncomplete, i};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    const bool fits = i == 1 ? byte >= low && byte <= high : (byte & 0xc0) == 0x80;
    if (!fits) return {Utf8Head::kInvalid, i};
  }
  return {Utf8Head::kCharacter, length};
}

bool IsUtf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const Utf8Head head = ReadUtf8(bytes);
    if (head.kind != Utf8Head::kCharacter) return false;
    bytes.remove_prefix(head.length);
  }
  return true;
}

void AppendUtf8(uint32_t code_point, std::string* out) {
  const auto continuation = [code_point](int shift) {
    return static_cast<char>(0x80 | (code_point >> shift & 0x3f));
  };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xc0 | code_point >> 6));
    out->push_back(continuation(0));
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xe0 | code_point >> 12));
    out->push_back(continuation(6));
    out->push_back(continuation(0));
  } else {
    out->push_back(static_cast<char>(0xf0 | code_point >> 18));
    out->push_back(continuation(12));
    out->push_back(continuation(6));
    out->push_back(continuation(0));
  }
}

}  // namespace rwkv_world
