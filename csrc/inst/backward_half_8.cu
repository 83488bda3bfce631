#include "kernels/multistep_launch.cuh"

namespace sewsnn {
template int64_t backward_blocks<Half, 8>(const BackwardParams&);
template cudaError_t launch_backward<Half, 8>(const BackwardParams&, cudaStream_t);
}  // namespace sewsnn
