// The stem's ops on the GPU, on torch's current stream.
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_pool_kernels.h"
#include "ops/cuda.h"
#include "ops/stem.h"

namespace sewsnn {

template <>
void run(const Cuda& gpu, PoolForwardCall& call) {
  gpu.check(cuda_pool_forward(call.params, gpu.stream));
}

template <>
void run(const Cuda& gpu, PoolReduceCall& call) {
  PoolReduceParams& p = call.params;
  const int64_t partials = call.grad_leak ? cuda_pool_learnt_partials(p) : 0;
  call.set_workspace(cuda_pool_workspace(p), partials);
  gpu.check(cuda_pool_reduce(p, gpu.stream));
  if (partials) gpu.check(cuda_sum_partials(p.learnt_partials, partials, p.dtype, data(call.grad_leak), gpu.stream));
}

template <>
void run(const Cuda& gpu, PoolApplyCall& call) {
  gpu.check(cuda_pool_apply(call.params, gpu.stream));
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) { sewsnn::add_stem_ops<sewsnn::Cuda>(m); }
