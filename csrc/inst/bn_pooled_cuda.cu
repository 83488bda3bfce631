// The choice among the kernels of bn_pooled_<storage>.cu.
#include "kernels/bn_pooled_launch.cuh"

namespace sewsnn {

#define SEWSNN_EXTERN(Storage)                                                                               \
  extern template cudaError_t launch_bn_pooled_forward<Storage>(const BnPooledForwardParams&, cudaStream_t); \
  extern template cudaError_t launch_bn_pooled_reduce<Storage>(const BnPooledReduceParams&, cudaStream_t);   \
  extern template cudaError_t launch_bn_pooled_apply<Storage>(const BnPooledApplyParams&, cudaStream_t);
SEWSNN_EXTERN(float)
SEWSNN_EXTERN(Half)
SEWSNN_EXTERN(BFloat16)
#undef SEWSNN_EXTERN

namespace {

// IF, LIF and PLIF, whose kernels are compiled together. Nobody trains in doubles.
bool is_common(const BnParams& p) {
  if (!p.spiking || p.dtype == DType::Float64) return false;
  return with_family<float>(
      p.neuron, [](auto family) { return std::is_same_v<typename decltype(family)::type, CommonNeuron<float>>; });
}

// The kernels count the rows of a walk, and the numbers of an image, with 32 bits.
bool counts_fit(const BnParams& p) { return countable(p.channels) && p.channels.count > 1 && p.M <= INT_MAX; }

template <class F>
cudaError_t with_half_or_float(DType dtype, F&& f) {
  return with_storage(dtype, [&](auto storage) {
    if constexpr (std::is_same_v<typename decltype(storage)::type, double>) return cudaErrorInvalidValue;
    else return f(storage);
  });
}

}  // namespace

bool cuda_bn_pooled_forward_serves(const BnPooledForwardParams& p) {
  const bool plain = !p.v && !p.bits && !p.sum && !p.still && p.connect != Connect::Sum;
  return is_common(p) && counts_fit(p) && plain && p.T <= kChunk;
}

bool cuda_bn_pooled_backward_serves(const BnBackwardParams& p) {
  const bool plain = p.connect == Connect::None || p.connect == Connect::Add;
  return is_common(p) && counts_fit(p) && plain && !p.still;
}

int64_t cuda_bn_pooled_learnt_partials(const BnPooledReduceParams& p) {
  int64_t blocks = 0;
  with_half_or_float(p.dtype, [&](auto storage) {
    blocks = reduce_walk<typename decltype(storage)::type>(p).blocks();
    return cudaSuccess;
  });
  return blocks;
}

cudaError_t cuda_bn_pooled_forward(const BnPooledForwardParams& p, cudaStream_t stream) {
  return with_half_or_float(
      p.dtype, [&](auto storage) { return launch_bn_pooled_forward<typename decltype(storage)::type>(p, stream); });
}

cudaError_t cuda_bn_pooled_reduce(const BnPooledReduceParams& p, cudaStream_t stream) {
  return with_half_or_float(
      p.dtype, [&](auto storage) { return launch_bn_pooled_reduce<typename decltype(storage)::type>(p, stream); });
}

cudaError_t cuda_bn_pooled_apply(const BnPooledApplyParams& p, cudaStream_t stream) {
  return with_half_or_float(
      p.dtype, [&](auto storage) { return launch_bn_pooled_apply<typename decltype(storage)::type>(p, stream); });
}

}  // namespace sewsnn
