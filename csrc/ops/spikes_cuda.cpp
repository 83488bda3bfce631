// sewsnn::unpack_spikes on the GPU, on torch's current stream.
#include "kernels/cuda_bn_kernels.h"
#include "ops/cuda.h"
#include "ops/spikes.h"

namespace sewsnn {

template <>
void run(const Cuda& gpu, UnpackCall& call) {
  gpu.check(cuda_unpack(static_cast<const uint8_t*>(call.bits.const_data_ptr()), call.bytes, dtype_of(call.out),
                        call.out.mutable_data_ptr(), gpu.stream));
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) {
  m.impl("unpack_spikes", &sewsnn::boxed<&sewsnn::unpack_spikes<sewsnn::Cuda>>);
}
