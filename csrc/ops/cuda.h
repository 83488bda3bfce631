// What the CUDA sides of the ops share: torch's current stream, errors of launches, gradients that are one number.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/layout.h"

namespace sewsnn {

cudaStream_t current_stream(const Tensor& t);
// Makes the GPU of x the current one. An error if x is on the CPU: the dispatcher comes here for any tensor on a GPU.
torch::stable::accelerator::DeviceGuard guard_of(const Tensor& x);
// An error of a launch; of the op `what`, or of something that ran before it.
void check_launch(cudaError_t error, const char* what);

// [rows, kBroadcast], each row of one number. `numbers`: where they lie, row_stride apart; the dense copy is as wide as
// the kernels' loads (core/params.h).
Operand broadcast(const Operand& numbers, int64_t rows);

}  // namespace sewsnn
