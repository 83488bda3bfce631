// Chooses and launches the stem's kernels. The templates are instantiated by the short files in csrc/inst.
#pragma once

#include "kernels/cuda_pool_kernels.h"
#include "kernels/multistep_launch.cuh"
#include "kernels/pool_backward.cuh"
#include "kernels/pool_forward.cuh"

namespace sewsnn {

// Channels per thread if channels_last. Forward: 16 bytes, as far as the spike trains fit into 32 bits. Backward: 4
// with K = 4, because potentials, gradients and surrogates are in registers at the same time. Doubles: 1 (nobody trains
// in them).
template <class Storage, int K>
constexpr int pool_forward_pack() {
  return sizeof(Storage) == 8 ? 1 : K == 4 ? 16 / int(sizeof(Storage)) : 2;
}
template <class Storage, int K>
constexpr int pool_backward_pack() {
  return sizeof(Storage) == 8 ? 1 : K == 4 ? 4 : 2;
}

// Enough blocks for any GPU. A strip has at least 8 rows of windows. For the 16 rows of z of such a strip, forward
// reads 17 rows and backward 19.
constexpr int64_t kPoolBlocks = 1024, kPoolStripRows = 8;

inline PoolTiling pool_tiling(const PoolParams& p, int pack) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t plane = p.height * p.width, out_plane = p.out_height() * p.out_width();
  const int64_t packs = ceil_div(p.channels, pack);
  PoolTiling g;
  g.steps = int(p.T), g.height = int(p.height), g.width = int(p.width), g.channels = int(p.channels);
  g.out_height = int(p.out_height()), g.out_width = int(p.out_width());
  g.channels_last = p.channels_last;
  g.columns = g.out_width < kPoolColumns ? g.out_width : kPoolColumns;
  g.halo = g.out_width > kPoolColumns ? 1 : 0;
  const int64_t room = kThreads / g.columns < kPoolPacks ? kThreads / g.columns : kPoolPacks;
  g.slices = int(ceil_div(packs, room));
  g.packs = int(ceil_div(packs, g.slices));
  g.tiles = int(ceil_div(g.out_width, g.columns - 2 * g.halo));
  const int64_t most = ceil_div(g.out_height, kPoolStripRows);
  const int64_t wanted = ceil_div(kPoolBlocks, p.images * g.slices * g.tiles);
  g.rows = int(ceil_div(g.out_height, wanted < most ? wanted : most));
  g.strips = int(ceil_div(g.out_height, g.rows));
  g.column = p.channels_last ? p.channels : 1;
  g.channel = p.channels_last ? 1 : plane;
  g.out_channel = p.channels_last ? 1 : out_plane;
  g.row = p.width * g.column, g.image = p.channels * plane;
  g.out_row = p.out_width() * g.column, g.out_image = p.channels * out_plane;
  g.out_step = p.images * g.out_image;
  return g;
}

template <class Storage>
bool pool_is_wide(const PoolParams& p, int pack, const void* a, const void* b) {
  const int64_t bytes = int64_t(sizeof(Storage)) * pack;
  return p.channels_last && p.channels % pack == 0 && aligned(p.z, 0, bytes) && aligned(a, 0, bytes) &&
         aligned(b, 0, bytes);
}

template <class S>
PoolSetup<S> pool_setup(const PoolParams& p, double count) {
  return {Setup<CommonNeuron<S>, S>::from(p.neuron), S(p.norm.eps), S(count)};
}

template <class P, class S>
cudaError_t launch_pool(void (*kernel)(P, PoolTiling, PoolSetup<S>), const P& p, int pack, const PoolSetup<S>& setup,
                        cudaStream_t stream) {
  const PoolTiling g = pool_tiling(p, pack);
  return launch(kernel, g.slices * g.blocks_per_slice(p.images), stream, p, g, setup);
}

template <class Storage, int K>
cudaError_t launch_pool_forward(const PoolForwardParams& p, cudaStream_t stream) {
  constexpr int N = pool_forward_pack<Storage, K>();
  const auto setup = pool_setup<State<Storage>>(p, 1);
  return pool_is_wide<Storage>(p, N, p.out, p.out)
             ? launch_pool(pool_forward_kernel<Storage, K, N>, p, N, setup, stream)
             : launch_pool(pool_forward_kernel<Storage, K, 1>, p, 1, setup, stream);
}

template <class Storage, int K>
PoolTiling pool_reduce_tiling(const PoolReduceParams& p) {
  constexpr int N = pool_backward_pack<Storage, K>();
  return pool_tiling(p, pool_is_wide<Storage>(p, N, p.grad_out, p.grad_out) ? N : 1);
}

template <class Storage, int K>
cudaError_t launch_pool_reduce(const PoolReduceParams& p, cudaStream_t stream) {
  constexpr int N = pool_backward_pack<Storage, K>();
  const auto setup = pool_setup<State<Storage>>(p, 1);
  return pool_is_wide<Storage>(p, N, p.grad_out, p.grad_out)
             ? launch_pool(pool_reduce_kernel<Storage, K, N>, p, N, setup, stream)
             : launch_pool(pool_reduce_kernel<Storage, K, 1>, p, 1, setup, stream);
}

template <class Storage, int K>
cudaError_t launch_pool_apply(const PoolApplyParams& p, cudaStream_t stream) {
  constexpr int N = pool_backward_pack<Storage, K>();
  const auto setup = pool_setup<State<Storage>>(p, p.count);
  return pool_is_wide<Storage>(p, N, p.grad_out, p.grad_z)
             ? launch_pool(pool_apply_kernel<Storage, K, N>, p, N, setup, stream)
             : launch_pool(pool_apply_kernel<Storage, K, 1>, p, 1, setup, stream);
}

}  // namespace sewsnn
