/* What HIP's host code calls in order to launch a kernel, on a machine without a GPU: each launch is handed to a function. */

#include <stddef.h>
#include <string.h>

typedef struct {
  unsigned x, y, z;
} Dim3;
typedef void (*Launched)(const char *kernel, const Dim3 *grid, const Dim3 *block, void **arguments, size_t lds_bytes);

enum { MAX_KERNELS = 64 };
const char __hip_fatbin_ = 0; /* the code for the GPU, which is elsewhere */
void *__hip_gpubin_handle_ = NULL;
static Launched launched;
static struct {
  const void *stub;
  const char *name;
} kernels[MAX_KERNELS];
static int num_kernels;
static struct {
  Dim3 grid, block;
  size_t lds_bytes;
  void *stream;
} pushed;

void attn_parity_set_launched(Launched function) { launched = function; }

void **__hipRegisterFatBinary(const void *binary) { return &__hip_gpubin_handle_; }

void __hipUnregisterFatBinary(void **modules) {}

void __hipRegisterFunction(void **modules, const void *stub, char *function, const char *name, unsigned threads, void *thread,
                           void *block_index, void *block, void *grid, int *warp_size) {
  if (num_kernels < MAX_KERNELS) {
    kernels[num_kernels].stub = stub;
    kernels[num_kernels++].name = name;
  }
}

int __hipPushCallConfiguration(Dim3 grid, Dim3 block, size_t lds_bytes, void *stream) {
  pushed.grid = grid, pushed.block = block, pushed.lds_bytes = lds_bytes, pushed.stream = stream;
  return 0;
}

int __hipPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *lds_bytes, void **stream) {
  *grid = pushed.grid, *block = pushed.block, *lds_bytes = pushed.lds_bytes, *stream = pushed.stream;
  return 0;
}

int hipLaunchKernel(const void *stub, Dim3 grid, Dim3 block, void **arguments, size_t lds_bytes, void *stream) {
  for (int i = 0; i < num_kernels; i++)
    if (kernels[i].stub == stub) {
      launched(kernels[i].name, &grid, &block, arguments, lds_bytes);
      return 0;
    }
  return 98; /* hipErrorInvalidDeviceFunction */
}
