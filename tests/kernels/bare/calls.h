/* What machines.py writes for run.c: which kernels to call, with which tensors. */
#include <stddef.h>
#include <stdint.h>

/* TVMFFIAny and DLTensor, as compiled kernels read them. */
typedef struct {
  int32_t type, padding;
  const void* value;
} Any;

typedef struct {
  void* data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;
  uint64_t offset;
} Tensor;

typedef int Kernel(void* self, const Any* args, int32_t count, Any* result);

typedef struct {
  Kernel* kernel;
  const Any* args;
  int32_t count;
} Call;

extern const Call calls[];
extern const size_t call_count, results_size;
extern char results[];

/* The machine's own: sends bytes out of it. */
void put(const char* bytes, size_t count);
int run(void);
