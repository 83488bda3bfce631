// The CUDA kernels as functions, without torch. They launch kernels on the stream and return the error of the launch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/params.h"

namespace sewsnn {

// Returns an error if the library has no code that the current device and its driver can run. It tries one kernel,
// which stands for all.
cudaError_t cuda_find_code();
// Whether a kernel on the current device may begin before the kernel in front of it has ended (programmatic dependent
// launch): the device can (compute capability 9.0), and the code that runs there waits by itself, because it was
// compiled for such a device.
bool cuda_can_begin_early();
cudaError_t cuda_forward(const ForwardParams&, cudaStream_t);
// Number of partial sums that backward writes to learnt_partials for each learnt parameter: the number of its blocks.
int64_t cuda_backward_blocks(const BackwardParams&);
cudaError_t cuda_backward(const BackwardParams&, cudaStream_t);
// Sums the partials in a fixed order and writes the sum in the state's type of dtype.
cudaError_t cuda_sum_partials(const double* partials, int64_t count, DType dtype, void* out, cudaStream_t);
// Sums each row of [rows, n] numbers in the state's type, in a fixed order: [rows].
cudaError_t cuda_sum_rows(const void* numbers, int64_t rows, int64_t n, DType state, void* out, cudaStream_t);

}  // namespace sewsnn
