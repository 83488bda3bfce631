// The CUDA kernels of max pooling (core/max_pool_params.h) as functions, without torch. They launch one kernel each on
// the stream and return the error of the launch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/max_pool_params.h"
#include "kernels/cuda_bn_kernels.h"

namespace sewsnn {

cudaError_t cuda_max_pool(const MaxPoolForwardParams&, cudaStream_t);
cudaError_t cuda_max_pool_backward(const MaxPoolBackwardParams&, cudaStream_t);

// Whether there is a kernel for these params: otherwise statistics and pooling need a kernel each.
bool cuda_max_pool_statistics_serves(const PoolStatisticsParams&);
BnWorkspace cuda_max_pool_statistics_workspace(const PoolStatisticsParams&);
cudaError_t cuda_max_pool_statistics(const PoolStatisticsParams&, cudaStream_t);

}  // namespace sewsnn
