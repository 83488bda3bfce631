// What the CUDA calls of batch norm + neuron + connection share: workspace, and the sums after reduce.
#pragma once

#include "kernels/cuda_bn_kernels.h"
#include "kernels/cuda_kernels.h"
#include "ops/bn.h"
#include "ops/counters.h"
#include "ops/cuda.h"

namespace sewsnn {

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

// Runs reduce with its workspace: learnt_partials(params) is the number of its partial sums, launch() launches it with
// the params of the call.
template <class Count, class Launch>
void reduce_with(const Cuda& gpu, BnReduceCall& call, Count&& learnt_partials, Launch&& launch) {
  BnReduceParams& p = call.params;
  const BnWorkspace need = cuda_bn_workspace(p.T, p.M, p.channels, p.dtype);
  const Counters counters = set_workspace(call, need, p.learnt_sums ? 2 : 1, gpu.stream);
  if (p.learnt_sums) {
    call.learnt_workspace = empty((need.bytes + 7) / 8, ScalarType::Double, call.sums);
    p.learnt_workspace = data(call.learnt_workspace);
  }
  const int64_t partials = call.wants_shared() ? learnt_partials(p) : 0;
  if (partials) call.set_learnt_partials(partials);
  gpu.check(launch());
  if (partials) gpu.check(cuda_sum_partials(p.learnt_partials, partials, p.dtype, data(call.grad_leak), gpu.stream));
  if (call.channel_sums)
    gpu.check(cuda_sum_rows(p.learnt_sums, call.kind().learnt, p.channels.count, state_of(p.dtype),
                            data(call.grad_leak), gpu.stream));
}

}  // namespace sewsnn
