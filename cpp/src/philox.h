// Random numbers by their place: Philox4x64-10 of Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3" (2011).
#ifndef RWKV_WORLD_SRC_PHILOX_H_
#define RWKV_WORLD_SRC_PHILOX_H_

#include <array>
#include <cstdint>

namespace rwkv_world {

// The four words at the counter {counter, 0, 0, 0} with the key {key, 0}.
inline std::array<uint64_t, 4> Philox(uint64_t key, uint64_t counter) {
  __extension__ using Product = unsigned __int128;
  constexpr uint64_t kMultiplier0 = 0xd2e7470ee14c6c93, kMultiplier1 = 0xca5a826395121157;
  constexpr uint64_t kStep0 = 0x9e3779b97f4a7c15, kStep1 = 0xbb67ae8584caa73b;
  std::array<uint64_t, 4> words = {counter, 0, 0, 0};
  uint64_t key0 = key, key1 = 0;
  for (int round = 0; round < 10; ++round) {
    const Product product0 = Product{kMultiplier0} * words[0];
    const Product product1 = Product{kMultiplier1} * words[2];
    words = {
        static_cast<uint64_t>(product1 >> 64) ^ words[1] ^ key0, static_cast<uint64_t>(product1),
        static_cast<uint64_t>(product0 >> 64) ^ words[3] ^ key1, static_cast<uint64_t>(product0)};
    key0 += kStep0;
    key1 += kStep1;
  }
  return words;
}

// From 0 up to, but not 1.
inline double Uniform(uint64_t key, uint64_t counter) {
  return static_cast<double>(Philox(key, counter)[0] >> 11) * 0x1p-53;
}

}  // namespace rwkv_world

#endif  // RWKV_WORLD_SRC_PHILOX_H_
