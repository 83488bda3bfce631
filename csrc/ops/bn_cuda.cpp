// Batch norm + neuron + connection on the GPU, on torch's current stream.
#include "kernels/cuda_bn_kernels.h"
#include "kernels/cuda_kernels.h"
#include "ops/bn_ops.h"
#include "ops/counters.h"
#include "ops/cuda.h"

namespace sewsnn {
namespace {

void widen(Operand& gradient, Rows& rows, int64_t T) {
  widen(gradient, T);
  rows = gradient.rows;
}

// Gives the params of statistics or reduce their workspace: `times` as many counters as for the sums alone. The launch
// must follow while the counters exist.
template <class Call>
Counters set_workspace(Call& call, const BnWorkspace& need, int64_t times, cudaStream_t stream) {
  call.partials = empty((need.bytes + 7) / 8, ScalarType::Double, *call.z.holder);
  call.params.partials = data(call.partials);
  Counters counters(*call.z.holder, need.counters * times, stream);
  call.params.counters = counters.data;
  return counters;
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
  const BnWorkspace need = cuda_bn_workspace(p.T, p.M, p.channels, p.dtype);
  const Counters counters = set_workspace(call, need, p.learnt_sums ? 2 : 1, gpu.stream);
  if (p.learnt_sums) {
    call.learnt_workspace = empty((need.bytes + 7) / 8, ScalarType::Double, call.sums);
    p.learnt_workspace = data(call.learnt_workspace);
  }
  const int64_t partials = call.wants_shared() ? cuda_bn_learnt_partials(p) : 0;
  if (partials) call.set_learnt_partials(partials);
  gpu.check(cuda_bn_reduce(p, gpu.stream));
  if (partials) gpu.check(cuda_sum_partials(p.learnt_partials, partials, p.dtype, data(call.grad_leak), gpu.stream));
  if (call.channel_sums)
    gpu.check(cuda_sum_rows(p.learnt_sums, call.kind().learnt, p.channels.count, state_of(p.dtype),
                            data(call.grad_leak), gpu.stream));
}

template <>
void run(const Cuda& gpu, BnApplyCall& call) {
  widen(call.grad_out, call.params.grad_out, call.params.T);
  gpu.check(cuda_bn_apply(call.params, gpu.stream));
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) { sewsnn::add_bn_ops<sewsnn::Cuda>(m); }
