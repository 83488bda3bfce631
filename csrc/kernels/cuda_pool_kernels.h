// The CUDA kernels of the stem (core/bn_params.h, PoolParams) as functions, without torch. They launch kernels on the
// stream and return the error of the launch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/bn_params.h"

namespace sewsnn {

// Bytes of `partials` that reduce needs.
int64_t cuda_pool_workspace(const PoolReduceParams&);
// Number of partial sums that reduce writes to learnt_partials; cuda_sum_partials (kernels/cuda_kernels.h) adds
// them.
int64_t cuda_pool_learnt_partials(const PoolReduceParams&);

cudaError_t cuda_pool_forward(const PoolForwardParams&, cudaStream_t);
cudaError_t cuda_pool_reduce(const PoolReduceParams&, cudaStream_t);
cudaError_t cuda_pool_apply(const PoolApplyParams&, cudaStream_t);

}  // namespace sewsnn
