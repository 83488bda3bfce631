// Batch norm + neuron + connection with a pooled output on the GPU, on torch's current stream.
#include "kernels/cuda_bn_pooled_kernels.h"
#include "ops/bn_cuda.h"
#include "ops/bn_pooled.h"

namespace sewsnn {

template <>
bool run_pooled(const Cuda& gpu, BnPooledForwardCall& call) {
  if (!call.images.in_order || !cuda_bn_pooled_forward_serves(call.params)) return false;
  gpu.check(cuda_bn_pooled_forward(call.params, gpu.stream));
  return true;
}

template <>
bool run_pooled(const Cuda& gpu, BnPooledBackwardCall& call, const Tensor& z, bool training, bool dense) {
  if (!call.images.in_order || !cuda_bn_pooled_backward_serves(call.first.params)) return false;
  BnPooledReduceParams reduce;
  const auto params = [&]() -> const BnPooledReduceParams& {
    static_cast<BnReduceParams&>(reduce) = call.first.params;
    call.fill(reduce);
    return reduce;
  };
  reduce_with(
      gpu, call.first, [&](const BnReduceParams&) { return cuda_bn_pooled_learnt_partials(params()); },
      [&] { return cuda_bn_pooled_reduce(params(), gpu.stream); });
  BnPooledApplyParams apply;
  static_cast<BnApplyParams&>(apply) = call.apply(z, training, dense).params;
  call.fill(apply);
  gpu.check(cuda_bn_pooled_apply(apply, gpu.stream));
  return true;
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) { sewsnn::add_bn_pooled_ops<sewsnn::Cuda>(m); }
