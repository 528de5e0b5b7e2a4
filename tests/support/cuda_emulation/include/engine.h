// What a kernel's source calls of the emulation. Threads are fibers; those of some blocks take
// turns in a random, seeded order, at barriers and at some accesses to memory. The compiler calls a
// hook at each access (see memory.cc), so that races are found whether or not they changed a value.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#define NOT_WATCHED __attribute__((no_sanitize("thread")))

namespace emulation {

struct Dim {
  unsigned x, y, z;
};

constexpr int kSlot = 128;

// What kernels may know of the thread that runs, and of its block.
struct Thread {
  Dim index, block;
  int lane;
  unsigned char* dynamic;  // extern shared memory
};

extern Thread* current;

void block_barrier();
// Orders a warp's accesses to memory.
void warp_barrier();
// Waits for a warp's lanes, and orders nothing.
void warp_meeting();
// The place of the static shared array that stands at `offset` of its kernel's.
unsigned char* shared_array(size_t offset, size_t bytes);
// A lane's slot for the next exchange of its warp, and those of all lanes.
unsigned char (*next_slots())[kSlot];

// A pointer to shared memory as instructions take it, 32 bits.
unsigned shared_address(const void* pointer);
unsigned char* shared_pointer(unsigned address);
// Ends the process with a message where the address is no multiple of `bytes`.
void require_aligned(const void* address, size_t bytes);
// An instruction's access, which the compiler does not see.
void touch(const void* address, size_t bytes, bool write);
// Copies of this thread that arrive as late as they may: when their group is waited for.
void copy_later(unsigned char* to, const void* from, int bytes);
void commit_copies();
// Makes the copies of all groups but the latest `pending`.
void finish_copies(int pending);

// Every lane's `value` is offered to the warp; `use(get)` may then get those of all lanes.
template <typename T, typename Use>
NOT_WATCHED void gather(const T& value, Use use) {
  static_assert(sizeof(T) <= kSlot, "a slot is too small");
  auto slots = next_slots();
  std::memcpy(slots[current->lane], &value, sizeof(T));
  warp_meeting();
  use([slots](int lane) NOT_WATCHED {
    T result;
    std::memcpy(&result, slots[lane], sizeof(T));
    return result;
  });
}

// Every lane's `value` is offered to the warp; gives that of the lane `from(own lane)`.
template <typename T, typename From>
NOT_WATCHED T exchange(const T& value, From from) {
  T result;
  gather(value, [&](auto get) NOT_WATCHED { result = get(from(current->lane)); });
  return result;
}

}  // namespace emulation
