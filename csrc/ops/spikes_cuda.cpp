// sewsnn::unpack_spikes on the GPU, on torch's current stream.
#include "kernels/cuda_bn_kernels.h"
#include "ops/call.h"
#include "ops/cuda.h"
#include "ops/spikes.h"

namespace sewsnn {
namespace {

Tensor unpack_spikes(Tensor bits, std::vector<int64_t> sizes, std::vector<int64_t> strides, ScalarType dtype) {
  const auto guard = guard_of(bits);
  const UnpackCall call(bits, sizes, strides, dtype);
  if (call.bytes)
    check_launch(cuda_unpack(static_cast<const uint8_t*>(call.bits.const_data_ptr()), call.bytes, dtype_of(call.out),
                             call.out.mutable_data_ptr(), current_stream(bits)),
                 "unpack_spikes");
  return call.out;
}

}  // namespace
}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) { m.impl("unpack_spikes", SEWSNN_BOX(sewsnn::unpack_spikes)); }
