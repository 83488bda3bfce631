// The CUDA kernels of batch norm + neuron + connection with a pooled output (core/bn_pooled_params.h) as functions,
// without torch. They launch a kernel on the stream and return the error of the launch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/bn_pooled_params.h"

namespace sewsnn {

// Whether there are kernels for these params: otherwise neuron and pooling need a kernel each.
bool cuda_bn_pooled_forward_serves(const BnPooledForwardParams&);
bool cuda_bn_pooled_backward_serves(const BnBackwardParams&);
// The workspace is that of cuda_bn_reduce. Number of partial sums that reduce writes to learnt_partials:
int64_t cuda_bn_pooled_learnt_partials(const BnPooledReduceParams&);

cudaError_t cuda_bn_pooled_forward(const BnPooledForwardParams&, cudaStream_t);
cudaError_t cuda_bn_pooled_reduce(const BnPooledReduceParams&, cudaStream_t);
cudaError_t cuda_bn_pooled_apply(const BnPooledApplyParams&, cudaStream_t);

}  // namespace sewsnn
