// The CUDA kernels of the stem (core/bn_params.h, PoolParams) as functions. No torch here. They return the launch's
// error; the stream carries the work.
#pragma once

#include <cuda_runtime_api.h>

#include "core/bn_params.h"

namespace sewsnn {

// Bytes of `partials` that reduce needs.
int64_t cuda_pool_workspace(const PoolReduceParams&);
// How many numbers reduce leaves in grad_leak_partials, to be added by cuda_sum_partials (kernels/cuda_kernels.h).
int64_t cuda_pool_leak_partials(const PoolReduceParams&);

cudaError_t cuda_pool_forward(const PoolForwardParams&, cudaStream_t);
cudaError_t cuda_pool_reduce(const PoolReduceParams&, cudaStream_t);
cudaError_t cuda_pool_apply(const PoolApplyParams&, cudaStream_t);

}  // namespace sewsnn
