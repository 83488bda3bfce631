// Max pooling on CUDA (core/max_pool_params.h). A thread has one window (forward) or one number of x (backward), of N
// neighbouring channels if channels_last. Backward gathers: it looks into every window that its number lies in, so that
// nothing is added by atomic operations, whose order would change from run to run.
#pragma once

#include "kernels/bn_words.cuh"
#include "kernels/max_pool_window.h"

SEWSNN_BEGIN

constexpr int kPoolThreads = 256;

// The place of a thread, of `Threads` per block: an image, and within it a row and a column of `rows` x `columns`, and
// a channel. The numbers of an image are counted with 32 bits, because divisions of 64 bits take long.
template <int N, int Threads = kPoolThreads>
struct PoolPlace {
  int64_t image;
  unsigned channel, row, column;
  bool exists;

  __device__ __forceinline__ PoolPlace(const MaxPoolParams& p, unsigned blocks_per_image, unsigned rows,
                                       unsigned columns) {
    const unsigned block = blockIdx.x;
    image = block / blocks_per_image;
    unsigned i = block % blocks_per_image * Threads + threadIdx.x;
    const unsigned packs = unsigned(p.channels) / N;
    exists = i < rows * columns * packs;
    if (p.channels_last) {
      channel = i % packs * N, i /= packs;
      column = i % columns, row = i / columns;
    } else {
      column = i % columns, i /= columns;
      row = i % rows, channel = i / rows;
    }
  }
  // The offset of this place, or of another row and column, in a tensor with `height` x `width` pixels.
  __device__ __forceinline__ int64_t offset(const MaxPoolParams& p, int64_t height, int64_t width, int y, int x) const {
    const int64_t pixel = y * width + x;
    return p.channels_last ? (image * height * width + pixel) * p.channels + channel
                           : (image * p.channels + channel) * height * width + pixel;
  }
};

template <class Storage, int N, class W>
__global__ void __launch_bounds__(kPoolThreads, N == 8 ? 2 : 4)
    max_pool_kernel(const MaxPoolForwardParams p, const unsigned blocks_per_image) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  const W w(p.window);
  const unsigned rows = unsigned(p.out_height), columns = unsigned(p.out_width);
  const PoolPlace<N> place(p, blocks_per_image, rows, columns);
  if (!place.exists) return;
  Pack<S, N> sign = fill_pack<S, N>(S(1)), best = fill_pack<S, N>(S(0));
  if (p.weight) {
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      const S weight = load_global(static_cast<const S*>(p.weight) + place.channel + j);
      sign.at[j] = weight > 0 ? S(1) : weight < 0 ? S(-1) : S(0);
    }
  }
  const int top = int(place.row) * w.stride() - w.padding(), left = int(place.column) * w.stride() - w.padding();
  int where[N] = {};
  bool any = false;
  const auto load = [&](int y, int x, Words<Storage, N>& words) {
    const bool exists = top + y >= 0 && top + y < p.height && left + x >= 0 && left + x < p.width;
    if (exists) words.load(Cursor<Storage, N>({p.x, 0, 1}, 0, place.offset(p, p.height, p.width, top + y, left + x)));
    return exists;
  };
  const auto compare = [&](int code, const Words<Storage, N>& words) {
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      const S next = words.number(j);
      if (any && !better(next, best.at[j], sign.at[j])) continue;
      best.at[j] = next, where[j] = code;
    }
    any = true;
  };
  if constexpr (W::kFixed) {  // all loads are issued before the first number is used
    Words<Storage, N> words[W::kMost];
    bool exists[W::kMost];
    SEWSNN_UNROLL
    for (int q = 0; q < W::kMost; ++q) exists[q] = load(q / w.kernel(), q % w.kernel(), words[q]);
    SEWSNN_UNROLL
    for (int q = 0; q < W::kMost; ++q)
      if (exists[q]) compare(q, words[q]);
  } else {
    SEWSNN_ROLLED
    for (int q = 0; q < w.kernel() * w.kernel(); ++q) {
      Words<Storage, N> words;
      if (load(q / w.kernel(), q % w.kernel(), words)) compare(q, words);
    }
  }
  const int64_t to = place.offset(p, rows, columns, int(place.row), int(place.column));
  Cursor<Storage, N>(p.out, 0, 0, to).store(store_<Storage>(best));
  if (!p.positions) return;
  Pack<uint8_t, N> positions;
  SEWSNN_UNROLL
  for (int j = 0; j < N; ++j) positions.at[j] = uint8_t(where[j]);
  Cursor<uint8_t, N>(p.positions, 0, 0, to).store(positions);
}

// The gradients of N numbers from the windows that they lie in, in the order of the windows. If the compiler knows the
// window, both loops are unrolled, and all loads can be issued before the first number is used.
template <class Storage, int N, class W>
__device__ __forceinline__ Pack<State<Storage>, N> gather_windows(const MaxPoolBackwardParams& p, const W& w,
                                                                  const PoolPlace<N>& place) {
  using S = State<Storage>;
  const int height = int(p.out_height), width = int(p.out_width);
  const Covering rows = covering(w, int(place.row), height), columns = covering(w, int(place.column), width);
  Pack<S, N> sum = fill_pack<S, N>(S(0));
  const auto add = [&](int y, int x, bool exists) {
    const int64_t from = exists ? place.offset(p, height, width, y, x) : 0;
    const auto grads = Cursor<Storage, N>({p.grad_out, 0, 1}, 0, from).load_if(exists);
    const auto positions = Cursor<uint8_t, N>({p.positions, 0, 1}, 0, from).load_if(exists);
    const int code =
        (int(place.row) + w.padding() - w.stride() * y) * w.kernel() + int(place.column) + w.padding() - w.stride() * x;
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j)
      if (exists && positions.at[j] == code) sum.at[j] += load_(grads.at[j]);
  };
  if constexpr (W::kFixed) {
    SEWSNN_UNROLL
    for (int a = 0; a < W::kCovering; ++a) {
      SEWSNN_UNROLL
      for (int b = 0; b < W::kCovering; ++b) {
        const int y = rows.first + a, x = columns.first + b;
        add(y, x, y <= rows.last && x <= columns.last);
      }
    }
  } else {
    SEWSNN_ROLLED
    for (int y = rows.first; y <= rows.last; ++y) {
      SEWSNN_ROLLED
      for (int x = columns.first; x <= columns.last; ++x) add(y, x, true);
    }
  }
  return sum;
}

template <class Storage, int N, class W>
__global__ void __launch_bounds__(kPoolThreads, 4)
    max_pool_backward_kernel(const MaxPoolBackwardParams p, const unsigned blocks_per_image) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  const PoolPlace<N> place(p, blocks_per_image, unsigned(p.height), unsigned(p.width));
  if (!place.exists) return;
  const int64_t here = place.offset(p, p.height, p.width, int(place.row), int(place.column));
  Pack<Storage, N> x = {};
  if (p.affine) x = Cursor<Storage, N>({p.x, 0, 1}, 0, here).load();
  Pack<S, N> grad = gather_windows<Storage>(p, W(p.window), place);
  if (p.affine) {
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      const S* const numbers = static_cast<const S*>(p.affine) + place.channel + j;
      const S mean = load_global(numbers + 2 * p.channels);
      grad.at[j] += load_global(numbers) + load_global(numbers + p.channels) * (load_(x.at[j]) - mean);
    }
  }
  Cursor<Storage, N>(p.grad_x, 0, 0, here).store(store_<Storage>(grad));
}

SEWSNN_END
