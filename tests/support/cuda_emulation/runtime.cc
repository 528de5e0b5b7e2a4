// CUDA's runtime and driver as far as TVM calls them, on a CPU: memory is the host's, a module is a
// library of kernels compiled for fibers, a stream does everything at once, a graph is a list of
// launches. One launch at a time.
#include <dlfcn.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine.h"

namespace emulation {

Fiber* current = nullptr;

namespace {

constexpr size_t kStack = 256 * 1024;
constexpr size_t kSharedLimit = 227 * 1024;
constexpr int kPoison = 0xff;  // NaN in every float type

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what.c_str());
  std::fflush(stderr);
  std::abort();
}

struct Running : Fiber {
  ucontext_t start;
  jmp_buf place;
  bool begun = false;
  bool done = false;
  const long* waits_for = nullptr;
  long epoch = 0;
};

using Kernel = void (*)(void**);

struct State {
  std::vector<Running> fibers;
  std::vector<Warp> warps;
  unsigned char* stacks = nullptr;
  size_t stack_count = 0;
  jmp_buf scheduler;
  Kernel kernel = nullptr;
  void** arguments = nullptr;
  unsigned char* shared = nullptr;
  unsigned char* dynamic = nullptr;
};
State state;

void arrive(int& arrived, int alive, long& epoch) {
  Running* self = static_cast<Running*>(current);
  if (arrived + 1 == alive) {
    arrived = 0;
    ++epoch;
    return;
  }
  ++arrived;
  self->waits_for = &epoch;
  self->epoch = epoch;
  if (_setjmp(self->place) == 0) _longjmp(state.scheduler, 1);
}

void leave(int& arrived, int& alive, long& epoch) {
  --alive;
  if (alive > 0 && arrived == alive) {
    arrived = 0;
    ++epoch;
  }
}

void body() {
  state.kernel(state.arguments);
  Running* self = static_cast<Running*>(current);
  leave(self->warp->arrived, self->warp->alive, self->warp->epoch);
  leave(self->block->arrived, self->block->alive, self->block->epoch);
  self->done = true;
  _longjmp(state.scheduler, 1);
}

// Runs a fiber until it waits or ends.
void resume(Running& fiber) {
  current = &fiber;
  if (_setjmp(state.scheduler) == 0) {
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.start);
  }
}

void run_block(Dim index, Dim size, bool backwards) {
  int count = static_cast<int>(size.x * size.y * size.z);
  if (state.stack_count < static_cast<size_t>(count)) {
    void* memory = mmap(nullptr, kStack * count, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for stacks");
    state.stacks = static_cast<unsigned char*>(memory);
    state.stack_count = count;
  }
  Block block;
  block.index = index;
  block.alive = count;
  block.shared = state.shared;
  block.dynamic = state.dynamic;
  std::memset(state.shared, kPoison, kSharedLimit);
  std::memset(state.dynamic, kPoison, kSharedLimit);
  state.warps.assign((count + 31) / 32, Warp{});
  if (state.fibers.size() != static_cast<size_t>(count)) state.fibers = std::vector<Running>(count);
  for (int i = 0; i < count; ++i) {
    Running& fiber = state.fibers[i];
    fiber.thread = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    fiber.block = &block;
    fiber.warp = &state.warps[i / 32];
    fiber.lane = i % 32;
    fiber.warp->alive++;
    fiber.exchanges = 0;
    fiber.copies.clear();
    fiber.groups.clear();
    fiber.begun = fiber.done = false;
    fiber.waits_for = nullptr;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = state.stacks + kStack * i;
    fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, body, 0);
  }
  for (;;) {
    bool all_done = true, progress = false;
    for (int step = 0; step < count; ++step) {
      Running& fiber = state.fibers[backwards ? count - 1 - step : step];
      if (fiber.done) continue;
      all_done = false;
      if (fiber.waits_for && *fiber.waits_for == fiber.epoch) continue;
      fiber.waits_for = nullptr;
      resume(fiber);
      progress = true;
    }
    if (all_done) return;
    if (!progress) fail("threads of a block wait at different barriers");
  }
}

}  // namespace

void block_barrier() {
  Block* block = current->block;
  arrive(block->arrived, block->alive, block->epoch);
}

void warp_barrier() {
  Warp* warp = current->warp;
  arrive(warp->arrived, warp->alive, warp->epoch);
}

void require_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    fail("an address is no multiple of " + std::to_string(bytes));
}

unsigned char* shared_array(size_t offset, size_t bytes) {
  if (offset + bytes > 48 * 1024) fail("more than 48 KB of static shared memory");
  return current->block->shared + offset;
}

namespace {

struct Function {
  std::string name;
  Kernel kernel;
  const size_t* sizes;  // of the arguments, ended by 0
  unsigned bound;       // threads of a block at most
  size_t dynamic_limit = 48 * 1024;
};

struct Module {
  void* library;
  std::map<std::string, Function> functions;
};

struct Launch {
  Function* function;
  Dim grid, block;
  size_t dynamic;
  std::vector<std::vector<unsigned char>> arguments;
};

using Graph = std::vector<std::function<void()>>;
Graph* capturing = nullptr;
std::map<void*, std::pair<void*, size_t>> allocated;
long launches = 0, captured_launches = 0, replays = 0;

void run(const Launch& launch) {
  static const bool backwards = std::getenv("RWKV_EMULATION_BACKWARDS") != nullptr;
  std::vector<void*> arguments;
  for (auto& value : launch.arguments)
    arguments.push_back(const_cast<unsigned char*>(value.data()));
  if (!state.shared) {
    state.shared = static_cast<unsigned char*>(aligned_alloc(1024, kSharedLimit));
    state.dynamic = static_cast<unsigned char*>(aligned_alloc(1024, kSharedLimit));
  }
  state.kernel = launch.function->kernel;
  state.arguments = arguments.data();
  for (unsigned z = 0; z < launch.grid.z; ++z)
    for (unsigned y = 0; y < launch.grid.y; ++y)
      for (unsigned x = 0; x < launch.grid.x; ++x)
        run_block({x, y, z}, launch.block, backwards);
}

void enqueue(std::function<void()> work) {
  if (capturing) {
    capturing->push_back(std::move(work));
  } else {
    work();
  }
}

int launch(Function* function, Dim grid, Dim block, size_t dynamic, void** arguments) {
  if (block.x * block.y * block.z > function->bound)
    fail(function->name + ": more threads than its launch bound");
  if (grid.x * grid.y * grid.z == 0) fail(function->name + ": launched without a block");
  if (grid.y > 65535 || grid.z > 65535) fail(function->name + ": the grid is too large");
  if (dynamic > function->dynamic_limit)
    fail(function->name + ": more shared memory than was asked for");
  Launch launch{function, grid, block, dynamic, {}};
  for (int i = 0; function->sizes[i]; ++i) {
    auto* value = static_cast<unsigned char*>(arguments[i]);
    launch.arguments.emplace_back(value, value + function->sizes[i]);
  }
  ++(capturing ? captured_launches : launches);
  enqueue([launch] { run(launch); });
  return 0;
}

}  // namespace
}  // namespace emulation

using namespace emulation;

extern "C" {

// What tests read: launches outside of graphs, launches that were captured, replays of graphs.
void emulation_counts(long* counts) {
  counts[0] = launches;
  counts[1] = captured_launches;
  counts[2] = replays;
}

struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, dynamic;
  void* stream;
  void* attributes;
  unsigned count;
};

int cuDeviceGetName(char* name, int size, int) {
  std::snprintf(name, size, "emulated");
  return 0;
}
int cuGetErrorName(int, const char** text) {
  *text = "CUDA_ERROR";
  return 0;
}
int cuGetErrorString(int, const char** text) {
  *text = "an error of the emulation";
  return 0;
}
int cuModuleLoadData(void** out, const void* image) {
  // The image is the path of a library, see __init__.py.
  void* library = dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(dlerror());
  *out = new Module{library, {}};
  return 0;
}
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** out, void* handle, const char* name) {
  auto* module = static_cast<Module*>(handle);
  std::string text = name;
  void* kernel = dlsym(module->library, ("emulated_" + text).c_str());
  if (!kernel) return 500;  // CUDA_ERROR_NOT_FOUND
  auto* sizes = static_cast<const size_t*>(dlsym(module->library, ("sizes_" + text).c_str()));
  auto* bound = static_cast<const unsigned*>(dlsym(module->library, ("bound_" + text).c_str()));
  Function function{text, reinterpret_cast<Kernel>(kernel), sizes, *bound};
  *out = &module->functions.emplace(text, function).first->second;
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
  if (attribute == 8) {
    if (static_cast<size_t>(value) > kSharedLimit) fail("more shared memory than there is");
    static_cast<Function*>(function)->dynamic_limit = value;
  }
  return 0;
}
int cuLaunchKernelEx(const LaunchConfig* c, void* function, void** arguments, void**) {
  return launch(static_cast<Function*>(function), {c->grid_x, c->grid_y, c->grid_z},
                {c->block_x, c->block_y, c->block_z}, c->dynamic, arguments);
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned dynamic, void*, void** arguments, void**) {
  return launch(static_cast<Function*>(function), {gx, gy, gz}, {bx, by, bz}, dynamic, arguments);
}
int cuTensorMapEncodeTiled(...) { return 801; }

int cudaGetDeviceCount(int* count) {
  *count = 1;
  return 0;
}
int cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cudaSetDevice(int) { return 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  static const std::map<int, int> known = {
      {1, 1024},          // threads of a block
      {8, 48 * 1024},     // shared memory of a block
      {10, 32},           // threads of a warp
      {13, 1980000},      // clock, kHz
      {16, 2},            // multiprocessors
      {75, 9},  {76, 0},  // compute capability
      {81, 228 * 1024},   // shared memory of a multiprocessor
      {82, 65536},        // registers of a multiprocessor
      {97, 227 * 1024},   // shared memory that a block may ask for
      {38, 50 << 20},     // L2
  };
  auto found = known.find(attribute);
  *value = found == known.end() ? 1024 : found->second;
  return 0;
}
int cudaGetDeviceProperties(char* name, int) {
  std::strcpy(name, "emulated");  // the first member
  return 0;
}
const char* cudaGetErrorName(int) { return "cudaError"; }
const char* cudaGetErrorString(int) { return "an error of the emulation"; }
int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }

int cudaMalloc(void** out, size_t bytes) {
  // It ends where a page ends, and what follows cannot be touched.
  size_t page = 4096, rounded = (bytes + 255) / 256 * 256;
  size_t whole = (rounded + page - 1) / page * page;
  void* memory = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
  if (memory == MAP_FAILED) return 2;  // cudaErrorMemoryAllocation
  auto* begin = static_cast<unsigned char*>(memory);
  mprotect(begin + whole, page, PROT_NONE);
  if (bytes <= (64 << 20)) std::memset(begin, kPoison, whole);
  *out = begin + whole - rounded;
  allocated[*out] = {begin, whole + page};
  return 0;
}
int cudaFree(void* memory) {
  auto found = allocated.find(memory);
  if (found != allocated.end()) {
    munmap(found->second.first, found->second.second);
    allocated.erase(found);
  }
  return 0;
}
int cudaMallocHost(void** out, size_t bytes) {
  *out = std::malloc(bytes);
  return 0;
}
int cudaFreeHost(void* memory) {
  std::free(memory);
  return 0;
}
int cudaMemGetInfo(size_t* available, size_t* total) {
  *available = *total = size_t(80) << 30;
  return 0;
}
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) {
  enqueue([=] { std::memmove(to, from, bytes); });
  return 0;
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, void*) {
  return cudaMemcpyAsync(to, from, bytes, 3, nullptr);
}

int cudaStreamCreate(void** stream) {
  *stream = new char;
  return 0;
}
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void* stream) {
  delete static_cast<char*>(stream);
  return 0;
}
int cudaStreamSynchronize(void*) {
  if (capturing) fail("a stream was synchronized while it was captured");
  return 0;
}
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaEventCreate(void** event) { return cudaStreamCreate(event); }
int cudaEventDestroy(void* event) { return cudaStreamDestroy(event); }
int cudaEventRecord(void*, void*) { return 0; }
int cudaEventSynchronize(void*) { return 0; }
int cudaEventElapsedTime(float* milliseconds, void*, void*) {
  *milliseconds = 1.0f;
  return 0;
}

int cudaStreamBeginCapture(void*, int) {
  if (capturing) fail("a capture within a capture");
  capturing = new Graph;
  return 0;
}
int cudaStreamEndCapture(void*, void** graph) {
  *graph = capturing;
  capturing = nullptr;
  return 0;
}
int cudaGraphInstantiate(void** out, void* graph, unsigned long long) {
  *out = new Graph(*static_cast<Graph*>(graph));
  return 0;
}
int cudaGraphLaunch(void* graph, void*) {
  ++replays;
  for (auto& work : *static_cast<Graph*>(graph)) work();
  return 0;
}
int cudaGraphDestroy(void* graph) {
  delete static_cast<Graph*>(graph);
  return 0;
}
int cudaGraphExecDestroy(void* graph) { return cudaGraphDestroy(graph); }

}  // extern "C"
