// Mean and variance of each channel, and the pooled input, in one pass over memory (core/max_pool_params.h). A thread
// has a cell of S x S pixels, which no other has, and the window that contains the cell. It goes from cell to cell like
// the kernels of batch norm (bn_walk.cuh).
#pragma once

#include "kernels/bn_statistics.cuh"
#include "kernels/max_pool.cuh"

SEWSNN_BEGIN

template <class Storage, int N, class W>
__global__ void __launch_bounds__(kThreads, 4)
    max_pool_statistics_kernel(const PoolStatisticsParams all, const Walk walk, const SecondStage second,
                               const double elements, const Momentum<State<Storage>> running) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  const MaxPoolForwardParams& p = all.pool;
  const W w(p.window);
  const int stride = w.stride(), height = int(p.height), width = int(p.width);
  const unsigned across = unsigned((width + stride - 1) / stride), down = unsigned((height + stride - 1) / stride);
  const int64_t plane = p.height * p.width, out_plane = p.out_height * p.out_width;
  Walker<N> at(walk);
  Pack<S, N> numbers[2];  // the origin, and the sign of the weight
  share_by_channel<kLine<Storage>>(walk, numbers, [&](int64_t channel, S(&out)[2]) {
    out[0] = origin<Storage>(all.statistics, channel), out[1] = S(1);
    if (!p.weight) return;
    const S weight = load_global(static_cast<const S*>(p.weight) + channel);
    out[1] = weight > 0 ? S(1) : weight < 0 ? S(-1) : S(0);
  });
  Pack<S, N> sums[2] = {fill_pack<S, N>(S(0)), fill_pack<S, N>(S(0))};
  const unsigned column =
      blockIdx.x % unsigned(walk.groups) * unsigned(walk.width) + threadIdx.x % unsigned(walk.width);
  for (; at.inside(walk); at.advance(walk)) {
    const unsigned row = unsigned(at.row), image = row / (down * across), cell = row % (down * across);
    const int cell_y = int(cell / across), cell_x = int(cell % across);
    // Distance of pixels, and the first number of the channel in the image, of x and of out.
    const int64_t step = p.channels_last ? p.channels : 1, channel = int64_t(column) * N;
    const int64_t from =
        p.channels_last ? image * plane * p.channels + channel : (image * p.channels + channel) * plane;
    const int top = cell_y * stride - w.padding(), left = cell_x * stride - w.padding();
    Words<Storage, N> z[W::kMost];
    SEWSNN_UNROLL
    for (int q = 0; q < W::kMost; ++q) {
      const int y = top + q / w.kernel(), x = left + q % w.kernel();
      if (y >= 0 && y < height && x >= 0 && x < width)
        z[q].load(Cursor<Storage, N>({p.x, 0, 1}, 0, from + (int64_t(y) * width + x) * step));
    }
    Pack<S, N> best = fill_pack<S, N>(S(0));
    Pack<uint8_t, N> where = {};
    bool any = false;
    SEWSNN_UNROLL
    for (int q = 0; q < W::kMost; ++q) {
      const int r = q / w.kernel(), c = q % w.kernel(), y = top + r, x = left + c;
      if (y < 0 || y >= height || x < 0 || x >= width) continue;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        const S next = z[q].number(j);
        if (r >= w.padding() && c >= w.padding()) {
          const S u = next - numbers[0].at[j];
          sums[0].at[j] += u;
          sums[1].at[j] += u * u;
        }
        if (any && !better(next, best.at[j], numbers[1].at[j])) continue;
        best.at[j] = next, where.at[j] = uint8_t(q);
      }
      any = true;
    }
    if (cell_y >= p.out_height || cell_x >= p.out_width) continue;
    const int64_t to =
        (p.channels_last ? image * out_plane * p.channels + channel : (image * p.channels + channel) * out_plane) +
        (int64_t(cell_y) * p.out_width + cell_x) * step;
    Cursor<Storage, N>(p.out, 0, 0, to).store(store_<Storage>(best));
    if (p.positions) Cursor<uint8_t, N>(p.positions, 0, 0, to).store(where);
  }
  finish_statistics<Storage>(all.statistics, walk, second, elements, running, sums);
}

SEWSNN_END
