// Common code of the ops on CUDA: torch's current stream, errors of launches, gradients that are one number.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/layout.h"

namespace sewsnn {

// The GPU of an op: that of its first tensor x, which is the current one as long as this object lives. The constructor
// raises an error if x is on the CPU, because the dispatcher calls the CUDA op if any tensor is on a GPU.
class Cuda {
 public:
  Cuda(const Tensor& x, const char* op);
  // Raises the error of a launch. The error belongs to the op or to a kernel that ran before it.
  void check(cudaError_t error) const;

 private:
  const char* const op_;
  const torch::stable::accelerator::DeviceGuard guard_;

 public:
  const cudaStream_t stream;  // torch's current one
};

// Replaces a gradient that is one number for all neurons in each of its `rows` rows by [rows, kBroadcast]. A row is
// then as wide as the loads of the kernels (core/params.h).
void widen(Operand& gradient, int64_t rows);

}  // namespace sewsnn
