// Where results come from: torch, but for the large ones on the CPU.
//
// glibc asks the system for every block of 32 MB and more anew and gives it back when the tensor dies. The page faults
// of that take longer than the kernel, and how much longer varies from call to call. So the blocks of large results are
// kept for the next result that fits, up to SEWSNN_CPU_KEEP_MB of them (default 1024; 0: none).
#pragma once

#include "ops/torch.h"

namespace sewsnn {

// Uninitialised, dense in whatever order, on the device of `like`.
Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                     const Tensor& like);

inline Tensor empty(int64_t n, ScalarType dtype, const Tensor& like) { return empty_strided({n}, {1}, dtype, like); }

}  // namespace sewsnn
