// Memory for results. torch provides it, except for large results on the CPU.
//
// glibc requests every block of 32 MB and more from the system, and gives it back when the tensor dies. The page faults
// of such a block take longer than the kernel, and their time varies from call to call. The blocks of large results are
// therefore kept for the next result that fits, up to SEWSNN_CPU_KEEP_MB megabytes (default 1024; 0: none).
#pragma once

#include <string>

#include "ops/torch.h"

namespace sewsnn {

// a * b; an error if 64 bits cannot hold it.
inline int64_t times(int64_t a, int64_t b) {
  int64_t product = 0;
  STD_TORCH_CHECK(!__builtin_mul_overflow(a, b, &product), "a tensor would be too large: 64 bits do not hold ", a,
                  " x ", b);
  return product;
}

// The product of all sizes from `first` on; 0 if one of them is 0, in whatever order they are.
int64_t count_of(const std::vector<int64_t>& sizes, size_t first = 0);

// An uninitialised tensor, dense in any order, on the device of `like`. An error if there is too little memory.
Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                     const Tensor& like);

inline Tensor empty(int64_t n, ScalarType dtype, const Tensor& like) { return empty_strided({n}, {1}, dtype, like); }

// The address of a tensor's numbers; an error if it has numbers but no memory.
const void* address(const Tensor& t);

// What is wrong with SEWSNN_CPU_KEEP_MB; empty: nothing.
std::string keep_problem();

}  // namespace sewsnn
