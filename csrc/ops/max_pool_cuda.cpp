// Max pooling on the GPU, on torch's current stream.
#include "kernels/cuda_max_pool_kernels.h"
#include "ops/cuda.h"
#include "ops/max_pool.h"

namespace sewsnn {

template <>
void run(const Cuda& gpu, MaxPoolForwardCall& call) {
  gpu.check(cuda_max_pool(call.params, gpu.stream));
}

template <>
void run(const Cuda& gpu, MaxPoolBackwardCall& call) {
  gpu.check(cuda_max_pool_backward(call.params, gpu.stream));
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) { sewsnn::add_max_pool_ops<sewsnn::Cuda>(m); }
