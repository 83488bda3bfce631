// The choice among the stem's kernels, which are instantiated in pool_<storage>.cu.
#include "kernels/pool_launch.cuh"

namespace sewsnn {

#define SEWSNN_EXTERN(Storage, K)                                                                      \
  extern template cudaError_t launch_pool_forward<Storage, K>(const PoolForwardParams&, cudaStream_t); \
  extern template PoolTiling pool_reduce_tiling<Storage, K>(const PoolReduceParams&);                  \
  extern template cudaError_t launch_pool_reduce<Storage, K>(const PoolReduceParams&, cudaStream_t);   \
  extern template cudaError_t launch_pool_apply<Storage, K>(const PoolApplyParams&, cudaStream_t);
SEWSNN_EXTERN(float, 4)
SEWSNN_EXTERN(float, 16)
SEWSNN_EXTERN(Half, 4)
SEWSNN_EXTERN(Half, 16)
SEWSNN_EXTERN(BFloat16, 4)
SEWSNN_EXTERN(BFloat16, 16)
SEWSNN_EXTERN(double, 16)
#undef SEWSNN_EXTERN

namespace {

// Calls f with the storage type and the largest number of time-steps of the kernels that serve these params.
template <class F>
auto with_steps(const PoolParams& p, F&& f) {
  return with_storage(p.dtype, [&](auto storage) {
    using Storage = typename decltype(storage)::type;
    if constexpr (sizeof(Storage) < 8) {
      if (p.T <= 4) return f(storage, std::integral_constant<int, 4>());
    }
    return f(storage, std::integral_constant<int, int(kChunk)>());
  });
}

PoolTiling reduce_tiling(const PoolReduceParams& p) {
  return with_steps(p, [&](auto storage, auto steps) {
    return pool_reduce_tiling<typename decltype(storage)::type, decltype(steps)::value>(p);
  });
}

template <class S>
cudaError_t launch_sums(const PoolReduceParams& p, cudaStream_t stream) {
  return launch(pool_sums_kernel<S>, 2 * p.channels, stream, static_cast<const double*>(p.partials),
                reduce_tiling(p).blocks_per_slice(p.images), 2 * p.channels, static_cast<S*>(p.sums));
}

}  // namespace

int64_t cuda_pool_workspace(const PoolReduceParams& p) {
  return reduce_tiling(p).blocks_per_slice(p.images) * 2 * p.channels * int64_t(sizeof(double));
}

int64_t cuda_pool_learnt_partials(const PoolReduceParams& p) {
  const PoolTiling g = reduce_tiling(p);
  return g.slices * g.blocks_per_slice(p.images);
}

cudaError_t cuda_pool_forward(const PoolForwardParams& p, cudaStream_t stream) {
  return with_steps(p, [&](auto storage, auto steps) {
    return launch_pool_forward<typename decltype(storage)::type, decltype(steps)::value>(p, stream);
  });
}

cudaError_t cuda_pool_reduce(const PoolReduceParams& p, cudaStream_t stream) {
  const cudaError_t error = with_steps(p, [&](auto storage, auto steps) {
    return launch_pool_reduce<typename decltype(storage)::type, decltype(steps)::value>(p, stream);
  });
  if (error != cudaSuccess) return error;
  return p.dtype == DType::Float64 ? launch_sums<double>(p, stream) : launch_sums<float>(p, stream);
}

cudaError_t cuda_pool_apply(const PoolApplyParams& p, cudaStream_t stream) {
  return with_steps(p, [&](auto storage, auto steps) {
    return launch_pool_apply<typename decltype(storage)::type, decltype(steps)::value>(p, stream);
  });
}

}  // namespace sewsnn
