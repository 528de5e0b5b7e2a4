// A device of TVM's runtime, KIND, that Python serves: every call of the GPU is a function of
// Python's, registered as rwkv_world_tests.KIND.*.
//
// A buffer is a number, which takes the place of a pointer.

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <cstdint>
#include <string>

namespace {

namespace ffi = tvm::ffi;
using tvm::Device;

ffi::Function python(const std::string& name) {
  return ffi::Function::GetGlobalRequired("rwkv_world_tests." KIND "." + name);
}

int64_t number(const void* pointer, size_t offset = 0) {
  return reinterpret_cast<int64_t>(pointer) + static_cast<int64_t>(offset);
}

class Served final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(Device) final {}

  void GetAttr(Device device, tvm::runtime::DeviceAttrKind kind, ffi::Any* value) final {
    if (kind == tvm::runtime::kExist) *value = static_cast<int>(device.device_id == 0 && EXISTS);
  }

  void* AllocDataSpace(Device, size_t size, size_t, DLDataType) final {
    return reinterpret_cast<void*>(python("allocate")(static_cast<int64_t>(size)).cast<int64_t>());
  }

  void FreeDataSpace(Device, void* buffer) final { python("release")(number(buffer)); }

  void StreamSync(Device, TVMStreamHandle) final { python("wait")(); }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t size,
                      Device source, Device target, DLDataType, TVMStreamHandle) final {
    const auto count = static_cast<int64_t>(size);
    if (source.device_type == kDLCPU) {
      python("write")(number(from, from_offset), number(to), static_cast<int64_t>(to_offset),
                      count);
    } else if (target.device_type == kDLCPU) {
      python("read")(number(from), static_cast<int64_t>(from_offset), number(to, to_offset), count);
    } else {
      python("copy")(number(from), static_cast<int64_t>(from_offset), number(to),
                     static_cast<int64_t>(to_offset), count);
    }
  }
};

// The kernels of a library, which Python has read.
class Shaders final : public ffi::ModuleObj {
 public:
  explicit Shaders(int64_t number) : number_(number) {}

  const char* kind() const final { return KIND; }

  int GetPropertyMask() const final { return ffi::Module::kRunnable; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    return python("kernel")(number_, name).cast<ffi::Optional<ffi::Function>>();
  }

 private:
  int64_t number_;
};

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("ffi.Module.load_from_bytes." KIND,
           [](const ffi::Bytes& bytes) {
             return ffi::Module(ffi::make_object<Shaders>(python("load")(bytes).cast<int64_t>()));
           })
      .def("device_api." KIND, []() -> void* {
        static Served device;
        return &device;
      });
}
