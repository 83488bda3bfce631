#include "kernels/bn_launch.cuh"

namespace sewsnn {
template cudaError_t launch_bn_reduce<double>(const BnReduceParams&, cudaStream_t);
template cudaError_t launch_bn_apply<double>(const BnApplyParams&, cudaStream_t);
}  // namespace sewsnn
