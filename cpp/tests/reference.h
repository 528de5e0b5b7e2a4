// Slow and obvious counterparts of the library, and inputs for both.
#ifndef RWKV_WORLD_TESTS_REFERENCE_H_
#define RWKV_WORLD_TESTS_REFERENCE_H_

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rwkv_world/tokenizer.h"

namespace rwkv_world::testing {

using Tokens = std::vector<std::pair<int32_t, std::string_view>>;

inline std::vector<std::string> SingleBytes() {
  std::vector<std::string> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  return bytes;
}

// Ids from 1, in the order of `strings`, which must live on.
inline Tokens Number(const std::vector<std::string>& strings) {
  Tokens tokens;
  for (const std::string& bytes : strings) {
    tokens.emplace_back(static_cast<int32_t>(tokens.size()) + 1, bytes);
  }
  return tokens;
}

class Reference {
 public:
  explicit Reference(const Tokens& tokens) {
    for (const auto& [id, bytes] : tokens) {
      ids_.emplace(bytes, id);
      longest_ = std::max(longest_, bytes.size());
    }
  }

  std::vector<int32_t> Encode(std::string_view text) const {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      std::size_t length = std::min(longest_, text.size());
      auto token = ids_.find(text.substr(0, length));
      while (token == ids_.end()) token = ids_.find(text.substr(0, --length));
      ids.push_back(token->second);
      text.remove_prefix(length);
    }
    return ids;
  }

 private:
  std::unordered_map<std::string_view, int32_t> ids_;
  std::size_t longest_ = 0;
};

inline std::string RandomBytes(std::mt19937* random, std::size_t size, int alphabet = 256) {
  std::string bytes(size, '\0');
  std::uniform_int_distribution<int> byte(0, alphabet - 1);
  for (char& c : bytes) c = static_cast<char>(byte(*random));
  return bytes;
}

}  // namespace rwkv_world::testing

#endif  // RWKV_WORLD_TESTS_REFERENCE_H_
