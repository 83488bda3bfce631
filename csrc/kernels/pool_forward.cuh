// The stem's forward. It reads z once (one row above each strip a second time) and writes only the pooled spikes.
#pragma once

#include "kernels/pool_tile.cuh"

SEWSNN_BEGIN

template <class Storage, int K, int N>
__global__ void __launch_bounds__(kThreads, 7)
    pool_forward_kernel(const PoolForwardParams p, const PoolTiling g, const PoolSetup<State<Storage>> o) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  __shared__ PoolNumbers<S, N> numbers[kForwardNumbers];
  __shared__ uint32_t odd_columns[2][kThreads];  // for one row of windows, and for the next
  load_numbers<S, N>(p, g, o, nullptr, numbers);
  const auto at = PoolThread<N>::at(g);
  const CommonNeuron<S> neuron = o.neuron.load_neuron();
  const Storage one = store_<Storage>(S(1)), zero = store_<Storage>(S(0));

  const int first = 2 * at.first - 1, end = 2 * at.last;  // rows of z
  const Rows z = {p.z, g.row, 1};
  Cursor<Storage, N> even_at(z, first, at.z), odd_at(z, first, at.z + g.column);
  const auto inside = [&](int row) { return row >= 0 && row < g.height; };
  auto next = PoolColumns<Storage, N>::load(even_at, odd_at, at, inside(first));
  uint32_t here = 0, odd = 0;  // spikes of the window so far: in both columns of this thread, in the odd column
  SEWSNN_ROLLED
  for (int row = first; row < end; ++row) {
    const PoolColumns<Storage, N> z_row = next;
    even_at.move(1), odd_at.move(1);
    next = PoolColumns<Storage, N>::load(even_at, odd_at, at, row + 1 < end && inside(row + 1));
    const PoolTrains trains = fired<K>(z_row, at, inside(row), neuron, o.neuron.fire, g.steps, numbers);
    here |= trains.even | trains.odd;
    odd |= trains.odd;
    if (row % 2 == 0) continue;
    if (row > first) {  // this row is the last one of window row i
      const int i = row / 2;
      odd_columns[i % 2][threadIdx.x] = odd;
      __syncthreads();
      const uint32_t spikes = here | (at.column > 0 ? odd_columns[i % 2][threadIdx.x - at.neighbour] : 0u);
      if (at.owns) {
        Cursor<Storage, N> out_at({p.out, g.out_step, 1}, 0, at.out + i * g.out_row);
        SEWSNN_UNROLL
        for (int t = 0; t < K; ++t) {
          if (t >= g.steps) break;
          Pack<Storage, N> out;
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j) out.at[j] = spikes >> (t * N + j) & 1 ? one : zero;
          out_at.store(out);
          out_at.move(1);
        }
      }
    }
    here = trains.even | trains.odd;  // and the first of the next
    odd = trains.odd;
  }
}

SEWSNN_END
