#include "kernels/bn_pooled_launch.cuh"

namespace sewsnn {
template cudaError_t launch_bn_pooled_forward<float>(const BnPooledForwardParams&, cudaStream_t);
template cudaError_t launch_bn_pooled_reduce<float>(const BnPooledReduceParams&, cudaStream_t);
template cudaError_t launch_bn_pooled_apply<float>(const BnPooledApplyParams&, cudaStream_t);
}  // namespace sewsnn
