// sewsnn::unpack_spikes for CPU and CUDA: converts packed spikes to numbers.
#pragma once

#include "ops/device.h"
#include "ops/operands.h"

namespace sewsnn {

struct UnpackCall {
  const Tensor& bits;
  int64_t bytes;
  Tensor out;

  UnpackCall(const Tensor& bits, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
             ScalarType dtype);
};

template <class Device>
std::tuple<Tensor> unpack_spikes(Arguments& read) {
  const Tensor bits = read.tensor();
  const std::vector<int64_t> sizes = read.wholes(), strides = read.wholes();
  const ScalarType dtype = read.dtype();
  const Device device(bits, "unpack_spikes");
  UnpackCall call(bits, sizes, strides, dtype);
  if (call.bytes) run(device, call);
  return {call.out};
}

}  // namespace sewsnn
