// Where results come from: torch, but for the large ones on the CPU.
//
// glibc asks the system for every block of 32 MB and more anew and gives it back when the tensor dies. The page faults
// of that take longer than the kernel, and how much longer varies from call to call. So the blocks of large results are
// kept for the next result that fits, up to SEWSNN_CPU_KEEP_MB of them (default 1024; 0: none).
#pragma once

#include <string>

#include "ops/torch.h"

namespace sewsnn {

// a b; an error where 64 bits do not hold it.
inline int64_t times(int64_t a, int64_t b) {
  int64_t product = 0;
  STD_TORCH_CHECK(!__builtin_mul_overflow(a, b, &product), "a tensor would be too large: 64 bits do not hold ", a,
                  " x ", b);
  return product;
}

// The product of all sizes from the first on, in any order: 0 where one of them is.
int64_t count_of(const std::vector<int64_t>& sizes, size_t first = 0);

// Uninitialised, dense in whatever order, on the device of `like`. An error where there is no memory for it.
Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                     const Tensor& like);

inline Tensor empty(int64_t n, ScalarType dtype, const Tensor& like) { return empty_strided({n}, {1}, dtype, like); }

// Where a tensor's numbers are; an error if it has numbers and no memory.
const void* address(const Tensor& t);

// What is wrong with SEWSNN_CPU_KEEP_MB; empty: nothing.
std::string keep_problem();

}  // namespace sewsnn
