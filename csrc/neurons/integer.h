// I-LIF: up to D spikes in a time-step. Soft reset by the number of spikes.
//   h = (1 - 1 / tau) v + x,  n = round(clamp(h / v_threshold, 0, D)),  v = h - n v_threshold
// The output is n, or n / D. Backward passes the gradient where lower <= h / v_threshold <= upper, and no surrogate is
// used. Halves are rounded to even. A NaN stays NaN.                                                (Luo et al., ECCV
// 2024)
#pragma once

#include "neurons/fire.h"
#include "neurons/kind.h"

SEWSNN_BEGIN

template <class S>
struct IntegerLeaky : OneThreshold {
  static constexpr int kStates = 1;
  static constexpr bool kBinary = false, kSurrogate = false;
  S decay, most, lower, upper, unit;
  // extra: D, lower, upper, and what the output is divided by: 1 or D
  static SEWSNN_HD IntegerLeaky from(const NeuronParams& p) {
    return {{}, S(1 - 1 / p.tau), S(p.extra[0]), S(p.extra[1]), S(p.extra[2]), S(p.extra[3])};
  }
  static SEWSNN_HD S at_rest(const FireReset<S>&, int) { return S(0); }

  template <class V, class W>
  SEWSNN_HD void charge(Numbers<V, 1>& u, V x, const W&) const {
    u[0] = decay * u[0] + x;
  }
  template <class V, class W, class G>
  SEWSNN_HD V grad_charge(Numbers<V, 1>& g, const Numbers<V, 1>&, V, const W&, G&) const {
    const V gh = g[0];
    g[0] = gh * decay;
    return gh;
  }

  template <class V>
  SEWSNN_HD V count(const FireReset<S>& fire, V h) const {
    V n = h / fire.v_threshold;
    n = select(n < S(0), V{}, n);
    return round_(select(n > most, splat<V>(most), n));
  }
  template <class V, class W>
  SEWSNN_HD V spikes(const FireReset<S>& fire, const Numbers<V, 1>& u, const W&) const {
    return count(fire, u[0]) / unit;
  }
  template <class V, class W>
  SEWSNN_HD void reset(const FireReset<S>& fire, Numbers<V, 1>& u, const W&) const {
    u[0] = u[0] - count(fire, u[0]) * fire.v_threshold;
  }
  template <class V, class W, class G>
  SEWSNN_HD void grad_reset(const FireReset<S>& fire, V gs, V, const Numbers<V, 1>& u, const W&, Numbers<V, 1>& g,
                            G&) const {
    const V scaled = u[0] / fire.v_threshold;
    V gn = gs / unit;
    if (!fire.detach) gn = gn - g[0] * fire.v_threshold;
    g[0] = g[0] + select(scaled >= lower, select(scaled <= upper, gn, V{}), V{}) / fire.v_threshold;
  }
};

struct ILIF : Kind<IntegerLeaky> {
  static constexpr const char* kName = "ILIF";
  static constexpr int kExtra = 4;
  static constexpr bool kUsesTau = true;
  static const char* problem(const NeuronParams& p) {
    constexpr int most = 1 << 22;  // float has halves up to here
    const double D = p.extra[0], lower = p.extra[1], upper = p.extra[2], unit = p.extra[3];
    if (!(D >= 1 && D <= most && D == int(D))) return "D must be an integer from 1 to 2**22";
    if (lower > upper) return "the gradient's lower bound must not exceed its upper bound";
    if (unit != 1 && unit != D) return "the output must be divided by 1 or D";
    if (p.v_threshold <= 0) return "v_threshold must be positive";
    if (p.hard_reset) return "v_reset must be None";
    return nullptr;
  }
};

SEWSNN_END
