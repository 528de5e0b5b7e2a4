#include "trie.h"

#include <algorithm>
#include <array>
#include <string>

namespace rwkv_world {

// Places nodes in depth-first order, each with all its children at the first base where they fit.
class TrieBuilder {
 public:
  TrieBuilder(const Vocabulary& vocabulary, Trie* trie) : ids_(vocabulary.sorted), trie_(trie) {
    tokens_.reserve(ids_.size());
    for (const uint16_t id : ids_) tokens_.push_back(vocabulary.token(id));
  }

  void Build() {
    AddBlock();  // the leaves' block, whose slots are never given out
    for (std::size_t slot = 0; slot < kBlock; ++slot) Occupy(slot);
    AddBlock();
    PlaceChildren(0, tokens_.size(), 0);
    const std::size_t blocks = trie_->units_.size() / kBlock;
    for (std::size_t block = blocks - std::min(blocks, kOpenBlocks); block < blocks; ++block) {
      CloseBlock(block);
    }
  }

 private:
  static constexpr std::size_t kBlock = 256;
  // Slots in older blocks are given up, so that the search for a base stays short.
  static constexpr std::size_t kOpenBlocks = 4;
  static constexpr uint32_t kNone = UINT32_MAX;

  struct Slot {
    uint32_t previous = kNone;
    uint32_t next = kNone;
    bool is_free = true;
    bool is_base = false;
  };

  std::size_t Length(std::size_t index) const { return tokens_[index].size(); }
  uint8_t ByteAt(std::size_t index, std::size_t depth) const {
    return static_cast<uint8_t>(tokens_[index][depth]);
  }

  // Places what follows the first `depth` bytes of the tokens [begin, end) in byte order, which
  // share these, and returns the base.
  std::size_t PlaceChildren(std::size_t begin, std::size_t end, std::size_t depth) {
    if (begin < end && Length(begin) == depth) ++begin;
    if (begin == end) return Trie::kLeafBase;

    std::array<uint8_t, 256> labels;
    std::size_t count = 0;
    for (std::size_t i = begin; i < end; ++i) {
      const uint8_t label = ByteAt(i, depth);
      if (count == 0 || labels[count - 1] != label) labels[count++] = label;
    }
    const std::size_t base = FindBase(labels.data(), count);
    slots_[base].is_base = true;
    for (std::size_t i = 0; i < count; ++i) Occupy(base ^ labels[i]);

    for (std::size_t i = 0; i < count; ++i) {
      std::size_t child_end = begin;
      while (child_end < end && ByteAt(child_end, depth) == labels[i]) ++child_end;
      const bool is_token = Length(begin) == depth + 1;
      const std::size_t child_base = PlaceChildren(begin, child_end, depth + 1);
      const std::size_t child = base ^ labels[i];
      trie_->units_[child] = static_cast<Trie::Unit>(child_base << 9 | (is_token ? 0x100U : 0U) |
                                                     static_cast<std::size_t>(labels[i]));
      if (is_token) trie_->ids_[child] = ids_[begin];
      begin = child_end;
    }
    return base;
  }

  std::size_t FindBase(const uint8_t* labels, std::size_t count) {
    for (uint32_t slot = first_free_; slot != kNone; slot = slots_[slot].next) {
      const std::size_t base = slot ^ labels[0];
      if (!slots_[base].is_base && std::all_of(labels + 1, labels + count, [&](uint8_t label) {
            return slots_[base ^ label].is_free;
          })) {
        return base;
      }
    }
    return AddBlock();
  }

  std::size_t AddBlock() {
    const std::size_t begin = trie_->units_.size();
    if (begin == Trie::kMaxUnits) {
      throw VocabularyError("the vocabulary is too large: its tokens have more than " +
                            std::to_string(Trie::kMaxUnits) + " different beginnings");
    }
    if (begin / kBlock >= kOpenBlocks) CloseBlock(begin / kBlock - kOpenBlocks);
    trie_->units_.resize(begin + kBlock);
    trie_->ids_.resize(begin + kBlock);
    slots_.resize(begin + kBlock);
    for (std::size_t i = 0; i < kBlock; ++i) {
      const auto slot = static_cast<uint32_t>(begin + i);
      slots_[slot].previous = last_free_;
      (last_free_ == kNone ? first_free_ : slots_[last_free_].next) = slot;
      last_free_ = slot;
    }
    return begin;
  }

  void Occupy(std::size_t index) {
    Slot& slot = slots_[index];
    slot.is_free = false;
    (slot.previous == kNone ? first_free_ : slots_[slot.previous].next) = slot.next;
    (slot.next == kNone ? last_free_ : slots_[slot.next].previous) = slot.previous;
  }

  // A slot that stays empty gets the label along which only a base that nobody has would reach it.
  // There is one: each base in a block has a slot of it, so all 256 in use leave none empty.
  void CloseBlock(std::size_t block) {
    const std::size_t begin = block * kBlock;
    std::size_t unused = begin == Trie::kLeafBase ? 1 : begin;
    while (unused < begin + kBlock && slots_[unused].is_base) ++unused;
    for (std::size_t slot = begin; slot < begin + kBlock; ++slot) {
      if (block == 0 || slots_[slot].is_free) {
        trie_->units_[slot] = static_cast<Trie::Unit>((slot ^ unused) & 0xff);
        if (slots_[slot].is_free) Occupy(slot);
      }
    }
  }

  const std::vector<uint16_t>& ids_;
  std::vector<std::string_view> tokens_;  // in the order of their bytes, as ids_ are
  Trie* trie_;
  std::vector<Slot> slots_;
  uint32_t first_free_ = kNone;
  uint32_t last_free_ = kNone;
};

Trie::Trie(const Vocabulary& vocabulary) {
  TrieBuilder(vocabulary, this).Build();
  units_.shrink_to_fit();
  ids_.shrink_to_fit();
}

int32_t Trie::Find(std::string_view token) const noexcept {
  if (token.empty()) return -1;
  const Match match = LongestPrefix(token.data(), token.data() + token.size());
  return match.end == token.data() + token.size() ? match.id : -1;
}

}  // namespace rwkv_world
