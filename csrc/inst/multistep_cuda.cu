// The forward kernels, and the choice among the backward kernels instantiated in backward_*.cu.
#include <atomic>

#include "kernels/multistep_launch.cuh"

namespace sewsnn {

#define SEWSNN_EXTERN(Storage, K)                                             \
  extern template int64_t backward_blocks<Storage, K>(const BackwardParams&); \
  extern template cudaError_t launch_backward<Storage, K>(const BackwardParams&, cudaStream_t);
SEWSNN_EXTERN(float, 4)
SEWSNN_EXTERN(float, 16)
SEWSNN_EXTERN(Half, 4)
SEWSNN_EXTERN(Half, 8)
SEWSNN_EXTERN(Half, 16)
SEWSNN_EXTERN(BFloat16, 4)
SEWSNN_EXTERN(BFloat16, 8)
SEWSNN_EXTERN(BFloat16, 16)
SEWSNN_EXTERN(double, 16)
#undef SEWSNN_EXTERN

namespace {

// Calls f with the storage type and the chunk length that serve these params.
template <class F>
auto with_chunk(const BackwardParams& p, F&& f) {
  return with_storage(p.dtype, [&](auto storage) {
    using Storage = typename decltype(storage)::type;
    if constexpr (sizeof(Storage) < 8) {
      if (p.T <= 4) return f(storage, std::integral_constant<int, 4>());
    }
    if constexpr (sizeof(Storage) == 2) {
      if (p.T <= 8 && backward_is_common_and_wide<Storage, 8>(p)) return f(storage, std::integral_constant<int, 8>());
    }
    return f(storage, std::integral_constant<int, int(kChunk)>());
  });
}

}  // namespace

cudaError_t cuda_forward(const ForwardParams& p, cudaStream_t stream) {
  return with_storage(p.dtype,
                      [&](auto storage) { return launch_forward<typename decltype(storage)::type>(p, stream); });
}

int64_t cuda_backward_blocks(const BackwardParams& p) {
  return with_chunk(p, [&](auto storage, auto chunk) {
    return backward_blocks<typename decltype(storage)::type, decltype(chunk)::value>(p);
  });
}

cudaError_t cuda_backward(const BackwardParams& p, cudaStream_t stream) {
  return with_chunk(p, [&](auto storage, auto chunk) {
    return launch_backward<typename decltype(storage)::type, decltype(chunk)::value>(p, stream);
  });
}

cudaError_t cuda_find_code() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, sum_partials_kernel<float>);
}

bool cuda_can_begin_early() {
  constexpr int kDevices = 64;
  static std::atomic<signed char> known[kDevices] = {};  // 0: not asked yet
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return false;
  if (known[device] == 0) {
    cudaFuncAttributes code = {};
    int major = 0;
    const bool can = cudaFuncGetAttributes(&code, sum_partials_kernel<float>) == cudaSuccess &&
                     cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                     code.ptxVersion >= 90 && major >= 9;
    known[device] = can ? 1 : -1;
  }
  return known[device] == 1;
}

cudaError_t cuda_sum_partials(const double* partials, int64_t count, DType dtype, void* out, cudaStream_t stream) {
  if (dtype == DType::Float64)
    return launch<kSumThreads>(sum_partials_kernel<double>, 1, stream, partials, count, static_cast<double*>(out));
  return launch<kSumThreads>(sum_partials_kernel<float>, 1, stream, partials, count, static_cast<float*>(out));
}

cudaError_t cuda_sum_rows(const void* numbers, int64_t rows, int64_t n, DType state, void* out, cudaStream_t stream) {
  if (state == DType::Float64)
    return launch<kSumThreads>(sum_rows_kernel<double>, rows, stream, static_cast<const double*>(numbers), n,
                               static_cast<double*>(out));
  return launch<kSumThreads>(sum_rows_kernel<float>, rows, stream, static_cast<const float*>(numbers), n,
                             static_cast<float*>(out));
}

}  // namespace sewsnn
