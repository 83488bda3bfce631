// The kernels that take statistics and pool in one pass, and the choice among them.
#include "kernels/bn_launch.cuh"
#include "kernels/cuda_max_pool_kernels.h"
#include "kernels/max_pool_statistics.cuh"

namespace sewsnn {
namespace {

// Calls f(storage, window, N) for the instance that serves these params.
template <class F>
auto with_cells(const PoolStatisticsParams& p, F&& f) {
  return with_storage(p.pool.dtype, [&](auto storage) {
    return with_window(p.pool.window, [&](auto window) {
      using Storage = typename decltype(storage)::type;
      using W = typename decltype(window)::type;
      using Cells = std::conditional_t<W::kHasCells, W, Window2x2>;  // others are not served
      constexpr int N = sizeof(Storage) == 8 ? 1 : 4;
      const MaxPoolForwardParams& pool = p.pool;
      const bool wide = pool.channels_last && pool.channels % N == 0 && aligned<Storage, N>({pool.x, 0, 1}, 1) &&
                        aligned<Storage, N>({pool.out, 0, 1}, 1) && aligned<uint8_t, N>({pool.positions, 0, 1}, 1);
      if constexpr (N > 1) {
        if (wide) return f(storage, Tag<Cells>(), Int<N>());
      }
      return f(storage, Tag<Cells>(), Int<1>());
    });
  });
}

Walk cell_walk(const PoolStatisticsParams& p, int N, int storage_bytes) {
  const MaxPoolForwardParams& pool = p.pool;
  const int64_t stride = pool.window.stride;
  const int64_t cells = divide_up(pool.height, stride) * divide_up(pool.width, stride);
  const Channels channels = {pool.channels, pool.channels_last ? 1 : cells};
  return walk_over(pool.images * pool.channels * cells, channels, N, storage_bytes, kReducingBlocks);
}

}  // namespace

bool cuda_max_pool_statistics_serves(const PoolStatisticsParams& p) {
  const MaxPoolForwardParams& pool = p.pool;
  const bool usual = with_window(pool.window, [](auto window) { return decltype(window)::type::kHasCells; });
  return usual && pool.channels > 1 && pool.images * pool.height * pool.width <= INT_MAX;  // counted with 32 bits
}

BnWorkspace cuda_max_pool_statistics_workspace(const PoolStatisticsParams& p) {
  return with_cells(p, [&](auto storage, auto, auto N) {
    using Storage = typename decltype(storage)::type;
    const Walk walk = cell_walk(p, N, sizeof(Storage));
    return BnWorkspace{partial_bytes(walk, sizeof(State<Storage>)) + chunk_bytes(walk), counters_of(walk)};
  });
}

cudaError_t cuda_max_pool_statistics(const PoolStatisticsParams& p, cudaStream_t stream) {
  return with_cells(p, [&](auto storage, auto window, auto neurons) {
    using Storage = typename decltype(storage)::type;
    using S = State<Storage>;
    constexpr int N = decltype(neurons)::value;
    const BnStatisticsParams& b = p.statistics;
    const Walk walk = cell_walk(p, N, sizeof(Storage));
    const double count = double(p.pool.images) * double(p.pool.height * p.pool.width);
    return launch(max_pool_statistics_kernel<Storage, N, typename decltype(window)::type>, walk.blocks(), stream, p,
                  walk, second_stage(walk, b.partials, sizeof(S), b.counters), count,
                  momentum_of<S>(b.momentum, count, b.running_mean, b.running_var, b.tracked));
  });
}

}  // namespace sewsnn
