// Common code of the ops on CUDA: torch's current stream, errors of launches, gradients that are one number.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/layout.h"

namespace sewsnn {

cudaStream_t current_stream(const Tensor& t);
// Makes the GPU of x the current one. Raises an error if x is on the CPU, because the dispatcher calls the CUDA op if
// any tensor is on a GPU.
torch::stable::accelerator::DeviceGuard guard_of(const Tensor& x);
// Raises the error of a launch. The error belongs to the op `what` or to a kernel that ran before it.
void check_launch(cudaError_t error, const char* what);

// Copies `numbers`, which are row_stride apart, to [rows, kBroadcast] with one number per row. A row is as wide as the
// loads of the kernels (core/params.h).
Operand broadcast(const Operand& numbers, int64_t rows);

}  // namespace sewsnn
