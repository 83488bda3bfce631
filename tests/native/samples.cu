// Kernels with one fault each, which the shim must find; and a kernel with known results that uses all of the shim.
#include "samples.h"

#include "core/access.h"

namespace samples {

using sewsnn::load_global;
using sewsnn::Pack;
using sewsnn::store_global;

__global__ void copy_shifted(const float* in, float* out, int from, int to) {
  store_global(out + threadIdx.x + to, load_global(in + threadIdx.x + from));
}

__global__ void wide_read(const float* in, float* out, int from) {
  store_global(out + threadIdx.x, load_global(reinterpret_cast<const Pack<float, 4>*>(in + from)).at[threadIdx.x % 4]);
}

__global__ void write_input(float* in) { store_global(in + threadIdx.x, 1.f); }

__global__ void write_twice(float* out) { store_global(out + threadIdx.x / 2, 1.f); }

__global__ void read_output(float* out) { store_global(out + threadIdx.x, load_global(out + threadIdx.x + 1)); }

__global__ void missed_barrier(float* out) {
  if (threadIdx.x == 7) return;
  __syncthreads();
  store_global(out + threadIdx.x, 1.f);
}

__global__ void missed_shuffle(float* out) {
  float x = 1;
  if (threadIdx.x != 7) x = __shfl_xor_sync(0xffffffffu, x, 1);
  store_global(out + threadIdx.x, x);
}

__global__ void foreign_mask(float* out) { store_global(out + threadIdx.x, __shfl_sync(0xfu, 1.f, 0)); }

// An access without load_global, which only AddressSanitizer can find.
__global__ void unseen_read(const float* in, float* out) { store_global(out + threadIdx.x, in[threadIdx.x + 1]); }

// Each thread reads what its neighbour wrote, without a barrier in between.
__global__ void race(const float* in, float* out) {
  __shared__ float shared[64];
  shared[threadIdx.x] = load_global(in + threadIdx.x);
  store_global(out + threadIdx.x, shared[(threadIdx.x + 1) % 64]);
}

// The sum of a block in shared memory that was not set to zero.
__global__ void stale_shared(const float* in, float* out) {
  __shared__ float sum;
  if (threadIdx.x == 0)
    for (int i = 0; i < 64; ++i) sum += load_global(in + i);
  __syncthreads();
  store_global(out + blockIdx.x * 64 + threadIdx.x, sum);
}

// Row r of out: the result of operation r for each of 64 threads i.
__global__ void operations(float* out) {
  __shared__ int turned[64];
  const int i = int(threadIdx.x);
  turned[63 - i] = i;
  __syncthreads();
  int row = 0;
  const auto put = [&](float value) { store_global(out + 64 * row++ + i, value); };
  put(float(turned[i]));
  put(float(__shfl_sync(0xffffffffu, i, 3)));
  put(float(__shfl_sync(0xffffffffu, i, 9, 8)));
  put(float(__shfl_up_sync(0xffffffffu, i, 2)));
  put(float(__shfl_down_sync(0xffffffffu, i, 2)));
  put(float(__shfl_down_sync(0xffffffffu, i, 2, 4)));
  put(float(__shfl_xor_sync(0xffffffffu, i, 5)));
  put(float(__popc(__ballot_sync(0xffffffffu, i % 3 == 0))));
  put(float(__any_sync(0xffffffffu, i == 40)));
  put(float(__all_sync(0xffffffffu, i < 40)));
  float half = -1;
  if (i % 2) half = float(__shfl_xor_sync(0xaaaaaaaau, i, 2));
  __syncwarp();
  put(half);
}

template <class... P, class... Given>
cudaError_t launch(void (*kernel)(P...), unsigned blocks, unsigned threads, Given... given) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  return cudaLaunchKernelEx(&config, kernel, given...);
}

cudaError_t run(const std::string& name, float* in, float* out) {
  if (name == "copy") return launch(copy_shifted, 1, 64, in, out, 0, 0);
  if (name == "read_before") return launch(copy_shifted, 1, 64, in, out, -1, 0);
  if (name == "read_after") return launch(copy_shifted, 1, 64, in, out, 1, 0);
  if (name == "write_after") return launch(copy_shifted, 1, 64, in, out, 0, 1);
  if (name == "half_outside") return launch(wide_read, 1, 64, in, out, 62);
  if (name == "misaligned") return launch(wide_read, 1, 64, in, out, 1);
  if (name == "write_input") return launch(write_input, 1, 64, in);
  if (name == "write_twice") return launch(write_twice, 1, 64, out);
  if (name == "read_output") return launch(read_output, 1, 63, out);
  if (name == "missed_barrier") return launch(missed_barrier, 1, 64, out);
  if (name == "missed_shuffle") return launch(missed_shuffle, 1, 64, out);
  if (name == "foreign_mask") return launch(foreign_mask, 1, 64, out);
  if (name == "unseen_read") return launch(unseen_read, 1, 64, in, out);
  if (name == "race") return launch(race, 1, 64, in, out);
  if (name == "stale_shared") return launch(stale_shared, 2, 64, in, out);
  if (name == "operations") return launch(operations, 1, 64, out);
  if (name == "no_blocks") return launch(write_input, 0, 64, in);
  if (name == "many_threads") return launch(write_input, 1, 1025, in);
  return cudaErrorInvalidValue;
}

}  // namespace samples
