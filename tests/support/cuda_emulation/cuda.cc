// CUDA's runtime and driver as far as TVM calls them, on a CPU: memory is the host's, a module is a
// library of kernels compiled for fibers, a stream does everything at once, a graph is a list of
// launches. One launch at a time.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

#include "emulation.h"

namespace emulation {

namespace {

struct Module {
  void* library;
  std::map<std::string, Kernel> kernels;
};

struct Launch {
  const Kernel* kernel;
  Dim grid, block;
  size_t dynamic;
  std::vector<std::vector<unsigned char>> arguments;
};

using Graph = std::vector<std::function<void()>>;
Graph* capturing = nullptr;
long launches = 0, captured_launches = 0, replays = 0;

void run(const Launch& launch) {
  std::vector<void*> arguments;
  for (auto& value : launch.arguments)
    arguments.push_back(const_cast<unsigned char*>(value.data()));
  run_grid(*launch.kernel, launch.grid, launch.block, launch.dynamic, arguments.data());
}

// What CUDA answers with cudaErrorStreamCaptureUnsupported or Invalidated.
void refuse_in_capture(const char* what) {
  if (capturing) fail(std::string(what) + " while a stream is captured");
}

void enqueue(std::function<void()> work) {
  if (capturing) {
    capturing->push_back(std::move(work));
  } else {
    work();
  }
}

int launch(const Kernel* kernel, Dim grid, Dim block, size_t dynamic, void** arguments) {
  const std::string& name = kernel->name;
  if (block.x * block.y * block.z > kernel->bound)
    fail(name + ": more threads than its launch bound");
  if (grid.x * grid.y * grid.z == 0) fail(name + ": launched without a block");
  if (grid.y > 65535 || grid.z > 65535) fail(name + ": the grid is too large");
  if (dynamic > kernel->dynamic_limit)
    fail(name + ": " + std::to_string(kernel->shared) + " bytes of static and " +
         std::to_string(dynamic) + " of dynamic shared memory, more than was asked for");
  Launch launch{kernel, grid, block, dynamic, {}};
  for (int i = 0; kernel->sizes[i]; ++i) {
    auto* value = static_cast<unsigned char*>(arguments[i]);
    launch.arguments.emplace_back(value, value + kernel->sizes[i]);
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

// The order in which threads and blocks take turns from now on.
void emulation_seed(unsigned long value) { seed(value); }

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
  const std::string text = name;
  const auto found = [&](const std::string& kind) {
    return dlsym(module->library, (kind + text).c_str());
  };
  void* function = found("emulated_");
  if (!function) return 500;  // CUDA_ERROR_NOT_FOUND
  Kernel kernel{text, reinterpret_cast<void (*)(void**)>(function)};
  kernel.sizes = static_cast<const size_t*>(found("sizes_"));
  kernel.bound = *static_cast<const unsigned*>(found("bound_"));
  kernel.shared = *static_cast<const size_t*>(found("shared_"));
  if (kernel.shared > kSharedDefault) fail(text + ": more than 48 KB of static shared memory");
  kernel.dynamic_limit = kSharedDefault - kernel.shared;
  *out = &module->kernels.emplace(text, kernel).first->second;
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
  if (attribute == 8) {
    auto* kernel = static_cast<Kernel*>(function);
    if (value + kernel->shared > kSharedLimit)
      fail(kernel->name + ": " + std::to_string(kernel->shared) + " bytes of static and " +
           std::to_string(value) + " of dynamic shared memory, more than the card has");
    kernel->dynamic_limit = value;
  }
  return 0;
}
int cuLaunchKernelEx(const LaunchConfig* c, void* function, void** arguments, void**) {
  return launch(static_cast<Kernel*>(function), {c->grid_x, c->grid_y, c->grid_z},
                {c->block_x, c->block_y, c->block_z}, c->dynamic, arguments);
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned dynamic, void*, void** arguments, void**) {
  return launch(static_cast<Kernel*>(function), {gx, gy, gz}, {bx, by, bz}, dynamic, arguments);
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
      {1, 1024},                  // threads of a block
      {8, 48 * 1024},             // shared memory of a block
      {10, 32},                   // threads of a warp
      {13, 1980000},              // clock, kHz
      {16, 2},                    // multiprocessors
      {75, 9},          {76, 0},  // compute capability
      {81, 228 * 1024},           // shared memory of a multiprocessor
      {82, 65536},                // registers of a multiprocessor
      {97, 227 * 1024},           // shared memory that a block may ask for
      {38, 50 << 20},             // L2
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
  refuse_in_capture("memory is allocated");
  *out = allocate(bytes);
  return *out ? 0 : 2;  // cudaErrorMemoryAllocation
}
int cudaFree(void* memory) {
  refuse_in_capture("memory is freed");
  release(memory);
  return 0;
}
int cudaMallocHost(void** out, size_t bytes) {
  refuse_in_capture("memory is allocated");
  *out = std::malloc(bytes);
  return 0;
}
int cudaFreeHost(void* memory) {
  refuse_in_capture("memory is freed");
  std::free(memory);
  return 0;
}
int cudaMemGetInfo(size_t* available, size_t* total) {
  *available = *total = size_t(80) << 30;
  return 0;
}
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) {
  for (const void* side : {static_cast<const void*>(to), from}) {
    if (is_device(side)) {
      require_allocated(side, bytes, "copies");
    } else {
      refuse_in_capture("the host's memory is copied");
    }
  }
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
  refuse_in_capture("the host waits for a stream");
  return 0;
}
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaEventCreate(void** event) { return cudaStreamCreate(event); }
int cudaEventDestroy(void* event) { return cudaStreamDestroy(event); }
int cudaEventRecord(void*, void*) { return 0; }
int cudaEventSynchronize(void*) {
  refuse_in_capture("the host waits for an event");
  return 0;
}
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
