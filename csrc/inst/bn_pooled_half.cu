#include "kernels/bn_pooled_launch.cuh"

namespace sewsnn {
template cudaError_t launch_bn_pooled_forward<Half>(const BnPooledForwardParams&, cudaStream_t);
template cudaError_t launch_bn_pooled_reduce<Half>(const BnPooledReduceParams&, cudaStream_t);
template cudaError_t launch_bn_pooled_apply<Half>(const BnPooledApplyParams&, cudaStream_t);
}  // namespace sewsnn
