#ifndef RWKV_WORLD_FUZZ_REQUIRE_H_
#define RWKV_WORLD_FUZZ_REQUIRE_H_

#include <cstdlib>

namespace rwkv_world::fuzzing {

inline void Require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace rwkv_world::fuzzing

#endif  // RWKV_WORLD_FUZZ_REQUIRE_H_
