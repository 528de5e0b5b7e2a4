// Runs the threads of some blocks as fibers, in an order that a seed chooses.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "emulation.h"

namespace emulation {

Thread* current = nullptr;
int accesses_left = 1;
uint32_t first_run = 0;

void fail(const std::string& what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what.c_str());
  std::fflush(stderr);
  std::abort();
}

namespace {

constexpr size_t kStack = 128 * 1024;
// Blocks whose threads take turns.
constexpr size_t kResident = 3;
// One access in so many lets others run first.
constexpr uint32_t kEach = 24;

struct Running : Fiber {
  ucontext_t start;
  jmp_buf at;
  bool begun = false;
};

struct Resident : Block {
  std::vector<Running> fibers;
  unsigned char* stacks = nullptr;
  size_t stack_count = 0;
  std::unique_ptr<unsigned char[]> arena{new unsigned char[kArena + 1024]};
};

struct State {
  Resident residents[kResident];
  std::vector<Fiber*> ready;
  std::minstd_rand random{1};
  jmp_buf scheduler;
  const Kernel* kernel = nullptr;
  void** arguments = nullptr;
  uint32_t runs = 0;
};
State state;

uint32_t below(size_t count) { return static_cast<uint32_t>(state.random() % count); }

// Back to the scheduler, until somebody makes this fiber ready.
void wait() {
  auto* self = static_cast<Running*>(running());
  if (_setjmp(self->at) == 0) _longjmp(state.scheduler, 1);
}

void open(Group& group) {
  ++group.epoch;
  state.ready.insert(state.ready.end(), group.waiting.begin(), group.waiting.end());
  group.waiting.clear();
}

void arrive(Group& group) {
  group.waiting.push_back(running());
  if (static_cast<int>(group.waiting.size()) == group.alive) open(group);
  wait();
}

void leave(Group& group) {
  --group.alive;
  if (group.alive > 0 && static_cast<int>(group.waiting.size()) == group.alive) open(group);
}

void body() {
  state.kernel->function(state.arguments);
  Fiber* self = running();
  leave(self->warp->meeting);
  leave(*self->warp);
  leave(*self->home);
  _longjmp(state.scheduler, 1);
}

void resume(Running& fiber) {
  current = &fiber;
  if (_setjmp(state.scheduler) == 0) {
    if (fiber.begun) _longjmp(fiber.at, 1);
    fiber.begun = true;
    setcontext(&fiber.start);
  }
  current = nullptr;
}

void begin(Resident& block, Dim index, Dim size, size_t dynamic) {
  const size_t count = size_t(size.x) * size.y * size.z;
  if (block.stack_count < count) {
    if (block.stacks) munmap(block.stacks, kStack * block.stack_count);
    void* memory = mmap(nullptr, kStack * count, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for stacks");
    block.stacks = static_cast<unsigned char*>(memory);
    block.stack_count = count;
  }
  block.index = index;
  block.run = ++state.runs;
  if (block.run >= kMostRuns) fail("too many blocks for one process");
  block.alive = static_cast<int>(count);
  const auto start = reinterpret_cast<uintptr_t>(block.arena.get());
  block.shared = block.arena.get() + (1024 - start % 1024) % 1024;
  block.records.resize(kArena / kGranule);
  std::memset(block.shared, kPoison, 2 * kSharedDefault);
  std::memset(block.shared + kDynamic, kPoison, dynamic);
  block.arrays.clear();
  if (dynamic) block.arrays.push_back({kDynamic, dynamic});
  block.warps.assign((count + 31) / 32, Warp{});
  if (block.fibers.size() != count) block.fibers = std::vector<Running>(count);
  for (size_t i = 0; i < count; ++i) {
    Running& fiber = block.fibers[i];
    const auto n = static_cast<unsigned>(i);
    fiber.index = {n % size.x, n / size.x % size.y, n / (size.x * size.y)};
    fiber.block = index;
    fiber.dynamic = block.shared + kDynamic;
    fiber.lane = static_cast<int>(i % 32);
    fiber.number = n;
    fiber.home = &block;
    fiber.warp = &block.warps[i / 32];
    fiber.warp->alive++;
    fiber.warp->meeting.alive++;
    fiber.exchanges = 0;
    fiber.copies.clear();
    fiber.groups.clear();
    fiber.begun = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = block.stacks + kStack * i;
    fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, body, 0);
    state.ready.push_back(&fiber);
  }
}

}  // namespace

void run_grid(const Kernel& kernel, Dim grid, Dim size, size_t dynamic, void** arguments) {
  state.kernel = &kernel;
  state.arguments = arguments;
  first_run = state.runs + 1;
  std::vector<Dim> waiting;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) waiting.push_back({x, y, z});
  for (size_t i = waiting.size(); i > 1; --i) std::swap(waiting[i - 1], waiting[below(i)]);
  for (;;) {
    size_t alive = 0;
    for (Resident& block : state.residents) {
      if (block.alive == 0 && !waiting.empty()) {
        begin(block, waiting.back(), size, dynamic);
        waiting.pop_back();
      }
      alive += block.alive;
    }
    if (!alive) return;
    if (state.ready.empty()) fail(kernel.name + ": threads of a block wait at different barriers");
    // Until a block ends, which makes room for another.
    for (bool ended = false; !ended && !state.ready.empty();) {
      std::swap(state.ready[below(state.ready.size())], state.ready.back());
      auto& fiber = static_cast<Running&>(*state.ready.back());
      state.ready.pop_back();
      resume(fiber);
      ended = fiber.home->alive == 0;
    }
  }
}

void seed(uint64_t value) { state.random.seed(static_cast<unsigned>(value % 2147483646 + 1)); }

void let_others_run() {
  accesses_left = static_cast<int>(1 + below(2 * kEach));
  state.ready.push_back(running());
  wait();
}

std::string place() {
  if (!current) return "the host";
  const Dim b = current->block, t = current->index;
  const auto three = [](Dim d) {
    return std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z);
  };
  return state.kernel->name + " (block " + three(b) + ", thread " + three(t) + ")";
}

void block_barrier() { arrive(*running()->home); }
void warp_barrier() { arrive(*running()->warp); }
void warp_meeting() { arrive(running()->warp->meeting); }

unsigned char (*next_slots()) [kSlot] {
  Fiber& self = *running();
  return self.warp->slots[self.exchanges++ & 1];
}

}  // namespace emulation
