// Runs the threads of a threadgroup: as fibers that switch where they meet, in an order that a seed
// chooses, or one after another where they never meet. Threadgroups run one after another.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace engine {

struct Index {
  uint32_t x, y, z;
};

constexpr uint32_t kLanes = 32;
constexpr size_t kStack = 64 * 1024;
// What every GPU with simdgroup matrices gives a threadgroup.
constexpr size_t kMemory = 32 * 1024, kThreads = 1024;
constexpr unsigned char kPoison = 0xff;  // NaN in every float type
constexpr unsigned char kGuard = 0xa5;
constexpr size_t kGap = 64;

struct Fiber;

struct Group {
  size_t alive = 0;
  std::vector<Fiber*> waiting;
};

struct Simdgroup : Group {
  // Values of an exchange; consecutive ones take turns.
  unsigned char slots[2][kLanes][16];
};

struct Fiber {
  Index index;
  uint32_t lane;
  Simdgroup* simdgroup;
  unsigned exchanges;
  bool begun;
  ucontext_t start;
  jmp_buf at;
};

struct Array {
  size_t offset, bytes;
};

struct Engine {
  std::vector<Fiber> fibers{kThreads};
  std::vector<Fiber*> ready;
  std::vector<Simdgroup> simdgroups{kThreads / kLanes};
  Group whole;
  Fiber* current = nullptr;
  Index block;
  const std::function<void(Index, Index)>* body = nullptr;
  jmp_buf scheduler;
  std::minstd_rand random{1};
  unsigned char* stacks = nullptr;
  alignas(256) unsigned char memory[2 * kMemory + 64 * kGap];
  std::string failure;
};
inline Engine engine;

inline void wait() {
  if (_setjmp(engine.current->at) == 0) _longjmp(engine.scheduler, 1);
}

inline void open(Group& group) {
  engine.ready.insert(engine.ready.end(), group.waiting.begin(), group.waiting.end());
  group.waiting.clear();
}

inline void meet(Group& group) {
  group.waiting.push_back(engine.current);
  if (group.waiting.size() == group.alive) open(group);
  wait();
}

inline void leave(Group& group) {
  --group.alive;
  if (group.alive && group.waiting.size() == group.alive) open(group);
}

inline void start() {
  (*engine.body)(engine.block, engine.current->index);
  leave(*engine.current->simdgroup);
  leave(engine.whole);
  _longjmp(engine.scheduler, 1);
}

inline void resume(Fiber& fiber) {
  engine.current = &fiber;
  if (_setjmp(engine.scheduler)) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

inline void run_together(uint32_t count, Index size) {
  if (!engine.stacks)
    engine.stacks =
        static_cast<unsigned char*>(mmap(nullptr, kStack * kThreads, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  engine.whole = {count, {}};
  for (auto& group : engine.simdgroups) group.alive = 0, group.waiting.clear();
  for (uint32_t i = 0; i < count; ++i) {
    Fiber& fiber = engine.fibers[i];
    fiber.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    fiber.lane = i % kLanes;
    fiber.simdgroup = &engine.simdgroups[i / kLanes];
    ++fiber.simdgroup->alive;
    fiber.exchanges = 0;
    fiber.begun = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = engine.stacks + kStack * i;
    fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, start, 0);
    engine.ready.push_back(&fiber);
  }
  while (!engine.ready.empty()) {
    std::swap(engine.ready[engine.random() % engine.ready.size()], engine.ready.back());
    Fiber& fiber = *engine.ready.back();
    engine.ready.pop_back();
    resume(fiber);
  }
  if (engine.whole.alive) engine.failure = "threads wait at different barriers";
}

// Runs `body(threadgroup, thread)` for every thread. `arrays` are in the threadgroup's memory, with
// nobody's bytes between; `meets` says whether threads wait for each other at all.
inline const char* launch(Index grid, Index size, bool meets, const std::vector<Array>& arrays,
                          const std::function<void(Index, Index)>& body) {
  const uint32_t count = size.x * size.y * size.z;
  engine.failure.clear();
  engine.body = &body;
  if (count > kThreads) return "a threadgroup has more than 1024 threads";
  for (uint32_t z = 0; z < grid.z; ++z)
    for (uint32_t y = 0; y < grid.y; ++y)
      for (uint32_t x = 0; x < grid.x; ++x) {
        engine.block = {x, y, z};
        for (const Array& one : arrays) {
          std::memset(engine.memory + one.offset, kPoison, one.bytes);
          std::memset(engine.memory + one.offset + one.bytes, kGuard, kGap);
        }
        if (meets) {
          run_together(count, size);
        } else {
          for (uint32_t i = 0; i < count; ++i)
            body(engine.block, {i % size.x, i / size.x % size.y, i / (size.x * size.y)});
        }
        for (const Array& one : arrays)
          for (size_t i = 0; i < kGap; ++i)
            if (engine.memory[one.offset + one.bytes + i] != kGuard)
              engine.failure = "a threadgroup's array is written beyond its end";
        if (!engine.failure.empty()) return engine.failure.c_str();
      }
  return nullptr;
}

}  // namespace engine
