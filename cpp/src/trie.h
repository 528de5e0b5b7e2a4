// A double-array trie over the bytes of the tokens.
#ifndef RWKV_WORLD_SRC_TRIE_H_
#define RWKV_WORLD_SRC_TRIE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "vocabulary.h"

namespace rwkv_world {

// The child of a node along byte c is the unit at (the node's base) ^ c, if that unit's label is
// c. One load and one comparison for each byte of text; no unit is ever out of bounds, whatever
// the byte, since the array's size is a multiple of 256.
class Trie {
 public:
  // Every single byte must be a token. Throws VocabularyError if the tokens have more different
  // beginnings than there can be units.
  explicit Trie(const Vocabulary& vocabulary);

  // The longest token that `text` starts with; `text` must not be empty.
  struct Match {
    int32_t id;
    const char* end;
  };
  Match LongestPrefix(const char* text, const char* end) const noexcept {
    Unit unit = units_[kRootBase ^ Byte(text)];
    std::size_t best = kRootBase ^ Byte(text);
    const char* best_end = ++text;
    for (; text != end; ++text) {
      const std::size_t next = Base(unit) ^ Byte(text);
      unit = units_[next];
      if (Label(unit) != Byte(text)) break;
      if (IsToken(unit)) {
        best = next;
        best_end = text + 1;
      }
    }
    return {ids_[best], best_end};
  }

  // The id of the token with exactly these bytes, or -1.
  int32_t Find(std::string_view token) const noexcept;

 private:
  friend class TrieBuilder;

  // Bits 0 to 7: the label. Bit 8: a token ends here. Bits 9 to 31: the base.
  using Unit = uint32_t;
  static std::size_t Label(Unit unit) { return unit & 0xff; }
  static bool IsToken(Unit unit) { return (unit & 0x100) != 0; }
  static std::size_t Base(Unit unit) { return unit >> 9; }
  static std::size_t Byte(const char* text) { return static_cast<uint8_t>(*text); }

  // The root has all 256 children, so it fills the second block. The first one holds nothing: it
  // is where nodes without children point.
  static constexpr std::size_t kLeafBase = 0;
  static constexpr std::size_t kRootBase = 256;
  static constexpr std::size_t kMaxUnits = std::size_t{1} << 23;

  std::vector<Unit> units_;
  std::vector<uint16_t> ids_;  // beside units_; 0 where no token ends
};

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SRC_TRIE_H_
