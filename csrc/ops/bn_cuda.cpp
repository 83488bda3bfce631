// Batch norm + neuron + connection on the GPU, on torch's current stream.
#include "ops/bn_cuda.h"
#include "ops/bn_ops.h"

namespace sewsnn {
namespace {

void widen(Operand& gradient, Rows& rows, int64_t T) {
  widen(gradient, T);
  rows = gradient.rows;
}

}  // namespace

template <>
void run(const Cuda& gpu, BnStatisticsCall& call) {
  BnStatisticsParams& p = call.params;
  const BnWorkspace need = cuda_bn_workspace(p.T, p.M, p.channels, p.dtype);
  const Counters counters = set_workspace(call, need, 1, gpu.stream);
  gpu.check(cuda_bn_statistics(p, gpu.stream));
}

template <>
void run(const Cuda& gpu, BnUpdateCall& call) {
  gpu.check(cuda_bn_update(call.statistics.const_data_ptr(), call.statistics.size(1), call.momentum, call.count,
                           dtype_of(call.statistics), call.mean.mutable_data_ptr(), call.var.mutable_data_ptr(),
                           gpu.stream));
}

template <>
void run(const Cuda& gpu, BnForwardCall& call) {
  gpu.check(cuda_bn_forward(call.params, gpu.stream));
}

template <>
void run(const Cuda& gpu, BnReduceCall& call) {
  BnReduceParams& p = call.params;
  widen(call.grad_out, p.grad_out, p.T);
  widen(call.grad_skip, p.grad_skip, p.T);
  reduce_with(gpu, call, cuda_bn_learnt_partials, [&] { return cuda_bn_reduce(p, gpu.stream); });
}

template <>
void run(const Cuda& gpu, BnApplyCall& call) {
  widen(call.grad_out, call.params.grad_out, call.params.T);
  gpu.check(cuda_bn_apply(call.params, gpu.stream));
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) { sewsnn::add_bn_ops<sewsnn::Cuda>(m); }
