#include "kernels/bn_launch.cuh"

namespace sewsnn {
template cudaError_t launch_bn_reduce<BFloat16>(const BnReduceParams&, cudaStream_t);
template cudaError_t launch_bn_apply<BFloat16>(const BnApplyParams&, cudaStream_t);
}  // namespace sewsnn
