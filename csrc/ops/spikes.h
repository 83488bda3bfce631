// Conversion of packed spikes to numbers, for sewsnn::unpack_spikes on CPU and CUDA.
#pragma once

#include <vector>

#include "ops/operands.h"

namespace sewsnn {

struct UnpackCall {
  Tensor bits, out;
  int64_t bytes;

  UnpackCall(const Tensor& bits, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
             ScalarType dtype);
};

}  // namespace sewsnn
