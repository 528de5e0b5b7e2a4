#ifndef RWKV_WORLD_SRC_UTF8_H_
#define RWKV_WORLD_SRC_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace rwkv_world {

// What stands at the start of some bytes: a whole character, the beginning of one that the bytes
// end in, or `length` bytes that are part of no character (a maximal subpart, as Unicode has it).
struct Utf8Head {
  enum Kind { kCharacter, kIncomplete, kInvalid } kind;
  std::size_t length;
};

// `bytes` must not be empty. Surrogates and overlong forms are invalid.
Utf8Head ReadUtf8(std::string_view bytes);

bool IsUtf8(std::string_view bytes);

// `code_point` is at most 0x10ffff and no surrogate.
void AppendUtf8(uint32_t code_point, std::string* out);

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SRC_UTF8_H_
