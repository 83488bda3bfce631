#include "kernels/bn_launch.cuh"

namespace sewsnn {
template cudaError_t launch_bn_reduce<float>(const BnReduceParams&, cudaStream_t);
template cudaError_t launch_bn_apply<float>(const BnApplyParams&, cudaStream_t);
}  // namespace sewsnn
