// The inner loops of the CPU kernels: one time-step of a block of neurons, unit stride, no branches, so that the
// compiler vectorises them for the instruction set this file is compiled for. Template arguments replace every run-time
// choice.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "core/dtype.h"
#include "neurons/fire.h"
#include "neurons/integrate_fire.h"
#include "neurons/leaky.h"
#include "neurons/surrogate.h"

SEWSNN_BEGIN

#define SEWSNN_RESTRICT __restrict__

// ---- storage <-> state

template <class Storage>
inline void load_row(const Storage* SEWSNN_RESTRICT in, State<Storage>* SEWSNN_RESTRICT out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = load_(in[i]);
}

template <class Storage>
inline void store_row(const State<Storage>* SEWSNN_RESTRICT in, Storage* SEWSNN_RESTRICT out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = store_<Storage>(in[i]);
}

#if defined(__F16C__)
template <>
inline void load_row<Half>(const Half* SEWSNN_RESTRICT in, float* SEWSNN_RESTRICT out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  for (; i < n; ++i) out[i] = load_(in[i]);
}
template <>
inline void store_row<Half>(const float* SEWSNN_RESTRICT in, Half* SEWSNN_RESTRICT out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; ++i) out[i] = store_<Half>(in[i]);
}
#endif

// ---- forward: h from v and x; v becomes the potential after the reset; out is s (Spikes) or h

template <class S>
using ForwardRow = void (*)(const NeuronParams&, S leak, const S* x, S* v, S* out, int64_t n);

template <class S, class Neuron, bool Decay, bool Hard, bool Spikes>
void forward_row(const NeuronParams& p, S leak, const S* SEWSNN_RESTRICT x, S* SEWSNN_RESTRICT v,
                 S* SEWSNN_RESTRICT out, int64_t n) {
  NeuronParams q = p;
  q.decay_input = Decay, q.hard_reset = Hard;
  const Neuron neuron = Neuron::from(q, leak);
  const FireReset<S> fire = FireReset<S>::from(q);
  for (int64_t i = 0; i < n; ++i) {
    const S h = neuron.charge(v[i], x[i]);
    out[i] = Spikes ? (fire.fires(h) ? S(1) : S(0)) : h;
    v[i] = fire.reset(h);
  }
}

// ---- backward

template <class S>
using SurrogateRow = void (*)(const NeuronParams&, const S* h, S* out, int64_t n);

template <class S, class Surrogate>
void surrogate_row(const NeuronParams& p, const S* SEWSNN_RESTRICT h, S* SEWSNN_RESTRICT out, int64_t n) {
  const Surrogate surrogate(p.alpha);
  const S v_threshold = S(p.v_threshold);
  for (int64_t i = 0; i < n; ++i) out[i] = surrogate(h[i] - v_threshold);
}

// gv: dL/dv after this step's reset on entry, of the step before on return. g: sigma' on entry, dL/dh on return.
template <class S>
using BackwardRow = void (*)(const NeuronParams&, S leak, const S* h, const S* gs, S* g, S* gv, S* gx, int64_t n);

template <class S, class Neuron, bool Decay, bool Hard, bool Detach>
void backward_row(const NeuronParams& p, S leak, const S* SEWSNN_RESTRICT h, const S* SEWSNN_RESTRICT gs,
                  S* SEWSNN_RESTRICT g, S* SEWSNN_RESTRICT gv, S* SEWSNN_RESTRICT gx, int64_t n) {
  NeuronParams q = p;
  q.decay_input = Decay, q.hard_reset = Hard, q.detach_reset = Detach;
  const Neuron neuron = Neuron::from(q, leak);
  const FireReset<S> fire = FireReset<S>::from(q);
  for (int64_t i = 0; i < n; ++i) {
    const S gh = fire.grad_h(gs[i], gv[i], h[i], g[i]);
    g[i] = gh;
    gx[i] = neuron.grad_x(gh);
    gv[i] = neuron.grad_v(gh);
  }
}

// sum of dL/dh dh/dleak over the row, in 16 double lanes whatever the vector width: the same number on every machine.
// v is the potential before the charge, or, with FromH, the h of the step before.
template <class S, bool Decay, bool Hard, bool FromH>
double leak_row(const NeuronParams& p, S leak, const S* SEWSNN_RESTRICT v, const S* SEWSNN_RESTRICT x,
                const S* SEWSNN_RESTRICT gh, int64_t n) {
  NeuronParams q = p;
  q.decay_input = Decay, q.hard_reset = Hard;
  const LeakyMultiply<S> neuron = LeakyMultiply<S>::from(q, leak);
  const FireReset<S> fire = FireReset<S>::from(q);
  double lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int k = 0; k < 16; ++k) {
      const S before = FromH ? fire.reset(v[i + k]) : v[i + k];
      lanes[k] += double(gh[i + k]) * double(neuron.d_leak(before, x[i + k]));
    }
  for (int k = 0; i < n; ++i, ++k)
    lanes[k] += double(gh[i]) * double(neuron.d_leak(FromH ? fire.reset(v[i]) : v[i], x[i]));
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

template <class S>
using LeakRow = double (*)(const NeuronParams&, S leak, const S* v, const S* x, const S* gh, int64_t n);

SEWSNN_END
