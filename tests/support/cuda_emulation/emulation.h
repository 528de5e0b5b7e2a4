// What the parts of the emulation know of each other; kernels see include/engine.h alone.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"

namespace emulation {

constexpr unsigned char kPoison = 0xff;  // NaN in every float type
// The card's, an H100's: what a block may have in all, and without asking for more.
constexpr size_t kSharedLimit = 227 * 1024, kSharedDefault = 48 * 1024;
// A block's arena: its static arrays, which are apart from each other (see __init__.py) and so take
// more than on a card, and from kDynamic on its dynamic memory.
constexpr size_t kArena = 512 * 1024, kDynamic = 256 * 1024;
// Bytes that one record of who has touched them stands for.
constexpr size_t kGranule = 2;

[[noreturn]] void fail(const std::string& what);

// Who touched some bytes last. All zeros is nobody.
struct Access {
  uint64_t run : 24;     // of a block; blocks of a launch are numbered from its first on
  uint64_t thread : 13;  // or kWarp + warp, kBlock or kGrid where several did; and kFlying
  uint64_t block_epoch : 13;
  uint64_t warp_epoch : 14;

  bool operator==(const Access& other) const { return !std::memcmp(this, &other, sizeof *this); }
};
static_assert(sizeof(Access) == 8, "it is one word");
constexpr uint32_t kWarp = 1 << 10, kBlock = 2 << 10, kGrid = 3 << 10, kFlying = 1 << 12;
constexpr uint32_t kMostRuns = 1 << 24;

struct Record {
  Access written, read;
};

struct Fiber;

struct Group {
  int alive = 0;
  uint32_t epoch = 1;
  std::vector<Fiber*> waiting;

  uint32_t number(int bits) const { return epoch & ((1u << bits) - 1); }
};

struct Warp : Group {
  Group meeting;
  // Values of a warp's exchange; consecutive exchanges take turns.
  alignas(16) unsigned char slots[2][32][kSlot];
};

struct Array {
  size_t offset, bytes;
};

struct Block : Group {
  Dim index;
  uint32_t run = 0;
  std::vector<Warp> warps;
  std::vector<Array> arrays;  // that its kernel has
  unsigned char* shared = nullptr;
  std::vector<Record> records;
};

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;  // of 16; the rest becomes zeros
};

// The state of a thread that memory.cc needs; fibers.cc knows how it runs.
struct Fiber : Thread {
  uint32_t number = 0;
  Block* home = nullptr;
  Warp* warp = nullptr;
  unsigned exchanges = 0;
  std::vector<Copy> copies;  // not committed yet
  std::deque<std::vector<Copy>> groups;
};

inline Fiber* running() { return static_cast<Fiber*>(current); }

struct Kernel {
  std::string name;
  void (*function)(void**) = nullptr;
  const size_t* sizes = nullptr;  // of the arguments, ended by 0
  unsigned bound = 0;             // threads of a block at most
  size_t shared = 0;              // bytes of its static shared arrays
  size_t dynamic_limit = 0;
};

// fibers.cc: runs all blocks of a launch, some at a time.
void run_grid(const Kernel& kernel, Dim grid, Dim block, size_t dynamic, void** arguments);
void seed(uint64_t value);
// Lets others run before an access, now and then: when this has come down to 0.
extern int accesses_left;
void let_others_run();
inline void give_way() {
  if (--accesses_left <= 0) let_others_run();
}
// The number of the first block of the launch that runs, and the running thread's place.
extern uint32_t first_run;
std::string place();

// memory.cc: device memory. Bytes outside of what was asked for, at either end, belong to nobody.
void* allocate(size_t bytes);
void release(void* pointer);
// Ends the process where these are not bytes of one allocation, if they are a device's at all.
bool is_device(const void* address);
void require_allocated(const void* address, size_t bytes, const char* what);

}  // namespace emulation
