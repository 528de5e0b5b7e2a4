// Runs the threads of one block as fibers that take turns at barriers.
//
// A thread runs until it waits for its warp or its block, so that what one thread reads before a
// barrier that another needed to reach first is still the poison that shared memory starts with.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

namespace emulation {

struct Dim {
  unsigned x, y, z;
};

struct Warp {
  int alive = 0;
  int arrived = 0;
  long epoch = 0;
  // Values of a warp's exchange; consecutive exchanges take turns.
  alignas(16) unsigned char slots[2][32][128];
};

struct Block {
  Dim index;
  int alive = 0;
  int arrived = 0;
  long epoch = 0;
  unsigned char* shared = nullptr;   // static shared memory, in the order of its declarations
  unsigned char* dynamic = nullptr;  // extern shared memory
};

struct Copy {
  void* to;
  const void* from;
  int bytes;  // of 16; the rest becomes zeros
};

struct Fiber {
  Dim thread;
  Block* block;
  Warp* warp;
  int lane;
  unsigned exchanges = 0;
  std::vector<Copy> copies;  // not committed yet
  std::deque<std::vector<Copy>> groups;
};

extern Fiber* current;

void block_barrier();
void warp_barrier();
// Ends the process with a message where the address is no multiple of `bytes`.
void require_aligned(const void* address, size_t bytes);
// The place of the static shared array that stands at `offset` of its kernel's.
unsigned char* shared_array(size_t offset, size_t bytes);

inline void copy_later(void* to, const void* from, int bytes) {
  current->copies.push_back({to, from, bytes});
}

inline void commit_copies() {
  current->groups.push_back(std::move(current->copies));
  current->copies.clear();
}

// Makes the copies of all groups but the latest `pending`.
inline void finish_copies(size_t pending) {
  for (auto& groups = current->groups; groups.size() > pending; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
}

// Every lane's `value` is offered to the warp; gives that of the lane `from(own lane)`.
template <typename T, typename From>
T exchange(const T& value, From from) {
  static_assert(sizeof(T) <= 128, "a slot is too small");
  Fiber* self = current;
  auto& slots = self->warp->slots[self->exchanges++ & 1];
  std::memcpy(slots[self->lane], &value, sizeof(T));
  warp_barrier();
  T result;
  std::memcpy(&result, slots[from(self->lane)], sizeof(T));
  return result;
}

// Every lane's `value` is offered to the warp; `use(get)` may then get those of all lanes.
template <typename T, typename Use>
void gather(const T& value, Use use) {
  static_assert(sizeof(T) <= 128, "a slot is too small");
  Fiber* self = current;
  auto& slots = self->warp->slots[self->exchanges++ & 1];
  std::memcpy(slots[self->lane], &value, sizeof(T));
  warp_barrier();
  use([&](int lane) {
    T result;
    std::memcpy(&result, slots[lane], sizeof(T));
    return result;
  });
}

}  // namespace emulation
