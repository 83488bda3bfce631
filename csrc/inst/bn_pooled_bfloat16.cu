#include "kernels/bn_pooled_launch.cuh"

namespace sewsnn {
template cudaError_t launch_bn_pooled_forward<BFloat16>(const BnPooledForwardParams&, cudaStream_t);
template cudaError_t launch_bn_pooled_reduce<BFloat16>(const BnPooledReduceParams&, cudaStream_t);
template cudaError_t launch_bn_pooled_apply<BFloat16>(const BnPooledApplyParams&, cudaStream_t);
}  // namespace sewsnn
