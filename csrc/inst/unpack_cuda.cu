#include "core/dispatch.h"
#include "kernels/cuda_bn_kernels.h"
#include "kernels/multistep_launch.cuh"
#include "kernels/unpack.cuh"

namespace sewsnn {

cudaError_t cuda_unpack(const uint8_t* bits, int64_t bytes, DType dtype, void* out, cudaStream_t stream) {
  const auto blocks = unsigned((bytes + kUnpackThreads - 1) / kUnpackThreads);
  return with_storage(dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    return launch<kUnpackThreads>(unpack_kernel<Storage>, blocks, stream, bits, bytes, static_cast<Storage*>(out));
  });
}

}  // namespace sewsnn
