// The kernels of batch norm + neuron + connection that are not instantiated in bn_backward_*.cu, and the choice by
// dtype.
#include "kernels/bn_launch.cuh"
#include "kernels/bn_unpack.cuh"

namespace sewsnn {

#define SEWSNN_EXTERN(Storage)                                                                \
  extern template cudaError_t launch_bn_reduce<Storage>(const BnReduceParams&, cudaStream_t); \
  extern template cudaError_t launch_bn_apply<Storage>(const BnApplyParams&, cudaStream_t);
SEWSNN_EXTERN(float)
SEWSNN_EXTERN(Half)
SEWSNN_EXTERN(BFloat16)
SEWSNN_EXTERN(double)
#undef SEWSNN_EXTERN

// If the channels are not countable, nothing will be launched, and the workspace is 0: walk_over() needs countable
// planes.
BnWorkspace cuda_bn_workspace(int64_t T, int64_t M, const Channels& channels, DType dtype) {
  BnWorkspace need;
  if (!countable(channels)) return need;
  with_storage(dtype, [&](auto storage) {
    using Storage = typename decltype(storage)::type;
    for (const int N : {1, 2, kWideShort, kWide<Storage>}) {
      if (!divides(N, channels)) continue;
      for (const int64_t length : {M, T * M}) {  // statistics may treat all time-steps as one
        const Walk walk = walk_over(length, channels, N, sizeof(Storage), kReducingBlocks);
        need.bytes = std::max(need.bytes, partial_bytes(walk, sizeof(State<Storage>)) + chunk_bytes(walk));
        need.counters = std::max(need.counters, counters_of(walk));
      }
    }
  });
  return need;
}

int64_t cuda_bn_learnt_partials(const BnReduceParams& p) {
  if (!countable(p.channels)) return 0;
  return with_storage(p.dtype, [&](auto storage) { return reduce_walk<typename decltype(storage)::type>(p).blocks(); });
}

cudaError_t cuda_channel_sums(const void* elements, int64_t rows, int64_t M, const Channels& channels, DType state,
                              void* workspace, unsigned* counters, void* out, cudaStream_t stream) {
  if (!countable(channels)) return cudaErrorInvalidValue;
  const auto sum = [&](auto tag) {
    using S = typename decltype(tag)::type;
    const Walk walk = walk_over(M, channels, 1, sizeof(S), kReducingBlocks);
    return launch(channel_sums_kernel<S>, walk.blocks(), stream, static_cast<const S*>(elements), rows, M, walk,
                  second_stage(walk, workspace, sizeof(S), counters), workspace, static_cast<S*>(out));
  };
  return state == DType::Float64 ? sum(Tag<double>()) : sum(Tag<float>());
}

cudaError_t cuda_bn_statistics(const BnStatisticsParams& p, cudaStream_t stream) {
  if (!countable(p.channels)) return cudaErrorInvalidValue;
  return with_storage(p.dtype,
                      [&](auto storage) { return launch_bn_statistics<typename decltype(storage)::type>(p, stream); });
}

cudaError_t cuda_bn_update(const void* statistics, int64_t channels, double momentum, double count, DType state,
                           void* running_mean, void* running_var, cudaStream_t stream) {
  const auto update = [&](auto tag) {
    using S = typename decltype(tag)::type;
    return launch<kSumThreads>(bn_update_kernel<S>, 1, stream, static_cast<const S*>(statistics), channels,
                               momentum_of<S>(momentum, count, running_mean, running_var, nullptr));
  };
  return state == DType::Float64 ? update(Tag<double>()) : update(Tag<float>());
}

cudaError_t cuda_bn_forward(const BnForwardParams& p, cudaStream_t stream) {
  if (!countable(p.channels)) return cudaErrorInvalidValue;
  return with_storage(p.dtype,
                      [&](auto storage) { return launch_bn_forward<typename decltype(storage)::type>(p, stream); });
}

cudaError_t cuda_bn_reduce(const BnReduceParams& p, cudaStream_t stream) {
  if (!countable(p.channels)) return cudaErrorInvalidValue;
  return with_storage(p.dtype,
                      [&](auto storage) { return launch_bn_reduce<typename decltype(storage)::type>(p, stream); });
}

cudaError_t cuda_bn_apply(const BnApplyParams& p, cudaStream_t stream) {
  if (!countable(p.channels)) return cudaErrorInvalidValue;
  return with_storage(p.dtype,
                      [&](auto storage) { return launch_bn_apply<typename decltype(storage)::type>(p, stream); });
}

cudaError_t cuda_unpack(const uint8_t* bits, int64_t bytes, DType dtype, void* out, cudaStream_t stream) {
  const int64_t blocks = divide_up(bytes, kUnpackThreads);
  return with_storage(dtype, [&](auto storage) {
    using Storage = typename decltype(storage)::type;
    return launch<kUnpackThreads>(bn_unpack_kernel<Storage>, blocks, stream, bits, bytes, static_cast<Storage*>(out));
  });
}

}  // namespace sewsnn
