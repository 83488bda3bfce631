// The inner loops of batch norm + neuron + connection on the CPU, before and after the loops of the neuron
// (cpu_tiles.h). All of them work on scratch arrays [time-step][neuron] in the first-level cache.
#pragma once

#include "core/bn_params.h"
#include "kernels/channel_lanes_cpu.h"
#include "kernels/multistep_cpu.h"

SEWSNN_BEGIN

// The rows of a channel table [kNormRows, C]: the numbers of each channel that a call needs.
enum NormRow : int { kMean, kScale, kBias, kMeanGrad, kMeanGradU, kNormRows };
template <class S>
using NormLanes = ChannelLanes<S, kNormRows>;

template <class S>
Group<S> operator*(const Group<S>& a, const Group<S>& b) {
  Group<S> r;
  for (int k = 0; k < kGroup; ++k) r.at[k] = a.at[k] * b.at[k];
  return r;
}
template <class S>
Group<S> operator+(const Group<S>& a, const Group<S>& b) {
  Group<S> r;
  for (int k = 0; k < kGroup; ++k) r.at[k] = a.at[k] + b.at[k];
  return r;
}
template <class S>
Group<S> operator-(const Group<S>& a, const Group<S>& b) {
  Group<S> r;
  for (int k = 0; k < kGroup; ++k) r.at[k] = a.at[k] - b.at[k];
  return r;
}
template <class S>
Group<S> splat_group(S s) {
  Group<S> r;
  for (int k = 0; k < kGroup; ++k) r.at[k] = splat<Vector<S>>(s);
  return r;
}

// Calls f(t, i) for every group of neurons and every time-step of a tile.
template <class S, class F>
inline void each_group(int64_t steps, const F& f) {
  for (int i = 0; i < kTile; i += kGroupSize<S>)
    for (int64_t t = 0; t < steps; ++t) f(t, i);
}

// f(i) returns a function of t for the group at i. All time-steps of the group use it, so its variables stay in
// registers.
template <class S, class F>
inline void each_column(int64_t steps, const F& f) {
  for (int i = 0; i < kTile; i += kGroupSize<S>) {
    const auto at = f(i);
    for (int64_t t = 0; t < steps; ++t) at(t);
  }
}

// y = (z - mean) scale + bias, plus the shortcut if it is added before the neuron.
template <class Storage>
void normalise(int64_t steps, const Source<Storage>& z, const Source<Storage>& shortcut, bool add_before,
               const NormLanes<State<Storage>>& lanes, State<Storage>* y) {
  using S = State<Storage>;
  const auto run = [&](auto add) {
    each_column<S>(steps, [&](int i) {
      return
          [=, mean = lanes.group(kMean, i), scale = lanes.group(kScale, i), bias = lanes.group(kBias, i)](int64_t t) {
            z.prefetch_group(t, i);
            Group<S> g = (z.group(t, i) - mean) * scale + bias;
            if constexpr (decltype(add)::value) {
              shortcut.prefetch_group(t, i);
              g = g + shortcut.group(t, i);
            }
            g.write_to(y + t * kTile + i);
          };
    });
  };
  with_bool(add_before, run);
}

// Writes the numbers of y, rounded to the storage type, and rounds y.
template <class Storage>
void store_rounded(int64_t steps, State<Storage>* y, const Sink<Storage>& to) {
  using S = State<Storage>;
  each_group<S>(steps, [&](int64_t t, int i) {
    S* const at = y + t * kTile + i;
    Group<S> g = Group<S>::read_from(at);
    if constexpr (!std::is_same_v<Storage, S>) {
      alignas(64) Storage rounded[kGroupSize<S>];
      Sink<Storage>{rounded, 0, false}.put(0, 0, g);
      g = Source<Storage>{rounded, 0, 1}.group(0, 0);
      g.write_to(at);
    }
    to.put(t, i, g);
  });
}

// Whether the shortcut is joined with the output of the neuron.
inline bool connects_after(Connect g) { return g == Connect::Add || g == Connect::And || g == Connect::Iand; }

// out = g(A, S)
template <class Storage>
void connect(Connect g, int64_t steps, const State<Storage>* a, const Source<Storage>& shortcut,
             const Sink<Storage>& out) {
  using S = State<Storage>;
  const auto run = [&](auto join) {
    each_group<S>(steps, [&](int64_t t, int i) { out.put(t, i, join(Group<S>::read_from(a + t * kTile + i), t, i)); });
  };
  const auto s = [&](int64_t t, int i) {
    shortcut.prefetch_group(t, i);
    return shortcut.group(t, i);
  };
  switch (g) {
    case Connect::Add: return run([&](const Group<S>& a, int64_t t, int i) { return a + s(t, i); });
    case Connect::And: return run([&](const Group<S>& a, int64_t t, int i) { return a * s(t, i); });
    case Connect::Iand:
      return run([&](const Group<S>& a, int64_t t, int i) { return s(t, i) * (splat_group(S(1)) - a); });
    case Connect::None:
    case Connect::AddBefore:
    case Connect::Sum: break;
  }
  run([](const Group<S>& a, int64_t, int) { return a; });
}

// dL/dA from dL/dout.
template <class Storage>
void connect_grad_a(Connect g, int64_t steps, const Source<Storage>& grad_out, const Source<Storage>& shortcut,
                    State<Storage>* grad_a) {
  using S = State<Storage>;
  const auto run = [&](auto gate) {
    each_group<S>(steps, [&](int64_t t, int i) {
      grad_out.prefetch_group(t, i);
      gate(grad_out.group(t, i), t, i).write_to(grad_a + t * kTile + i);
    });
  };
  const auto gated = [&](const Group<S>& go, int64_t t, int i) {
    shortcut.prefetch_group(t, i);
    return go * shortcut.group(t, i);
  };
  if (g == Connect::And) return run(gated);
  if (g == Connect::Iand)
    return run([&](const Group<S>& go, int64_t t, int i) { return splat_group(S(0)) - gated(go, t, i); });
  run([](const Group<S>& go, int64_t, int) { return go; });
}

// dL/dS of AND and IAND: dL/dout A and dL/dout (1 - A).
template <class Storage>
void connect_grad_shortcut(Connect g, int64_t steps, const Source<Storage>& grad_out, const State<Storage>* output,
                           const Sink<Storage>& grad_shortcut) {
  using S = State<Storage>;
  each_group<S>(steps, [&](int64_t t, int i) {
    Group<S> a = Group<S>::read_from(output + t * kTile + i);
    if (g == Connect::Iand) a = splat_group(S(1)) - a;
    grad_shortcut.put(t, i, grad_out.group(t, i) * a);
  });
}

// grad_out + grad_skip, rounded to the storage type, for reduce (in the cache) and for apply (in memory).
template <class Storage>
void add_gradients(int64_t steps, const Source<Storage>& a, const Source<Storage>& b, const Sink<Storage>& near,
                   const Sink<Storage>& far) {
  using S = State<Storage>;
  each_group<S>(steps, [&](int64_t t, int i) {
    a.prefetch_group(t, i);
    b.prefetch_group(t, i);
    const Group<S> sum = a.group(t, i) + b.group(t, i);
    near.put(t, i, sum);
    if (far.data) far.put(t, i, sum);
  });
}

// dL/dz = scale (dL/dy - mean(dL/dy) - (z - mean) mean(dL/dy xhat) / sqrt(var + eps))
template <class S>
struct NormGrad {
  Group<S> mean, scale, mean_grad, mean_grad_u;

  NormGrad(const NormLanes<S>& lanes, int i)
      : mean(lanes.group(kMean, i)),
        scale(lanes.group(kScale, i)),
        mean_grad(lanes.group(kMeanGrad, i)),
        mean_grad_u(lanes.group(kMeanGradU, i)) {}
  Group<S> operator()(const Group<S>& dy, const Group<S>& z) const {
    return scale * ((dy - mean_grad) - (z - mean) * mean_grad_u);
  }
};

// Packs spikes as bits: the spike of neuron i is bit i % 8 of byte i / 8.
template <class S>
void pack_spikes(int64_t steps, const S* a, uint8_t* bits, int64_t row_bytes, int n) {
  for (int64_t t = 0; t < steps; ++t)
    for (int i = 0; i < n; i += 8) {
      uint64_t bytes = 0;  // one spike in each byte
      for (int j = 0; j < 8; ++j) bytes |= uint64_t(a[t * kTile + i + j] != S(0)) << (8 * j);
      bits[t * row_bytes + i / 8] = uint8_t(bytes * 0x0102040810204080u >> 56);  // bit 8 j to bit 56 + j
    }
}

SEWSNN_END
