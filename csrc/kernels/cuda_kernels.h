// The CUDA kernels as functions. No torch here. They return the launch's error; the stream carries the work.
#pragma once

#include <cuda_runtime_api.h>

#include "core/params.h"

namespace sewsnn {

// Whether the library has code that the current device and its driver can run: an error of one kernel is one of all.
cudaError_t cuda_find_code();
cudaError_t cuda_forward(const ForwardParams&, cudaStream_t);
// How many partial sums the backward leaves in grad_leak_partials (its grid).
int64_t cuda_backward_blocks(const BackwardParams&);
cudaError_t cuda_backward(const BackwardParams&, cudaStream_t);
// The partials summed in a fixed order, in the state's type of dtype.
cudaError_t cuda_sum_partials(const double* partials, int64_t count, DType dtype, void* out, cudaStream_t);

}  // namespace sewsnn
