// Converts run-time values to template arguments.
#pragma once

#include <cmath>

#include "core/dtype.h"
#include "neurons/integrate_fire.h"
#include "neurons/leaky.h"

SEWSNN_BEGIN

template <class T>
struct Tag {
  using type = T;
};

template <class F>
auto with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::Float16: return f(Tag<Half>());
    case DType::BFloat16: return f(Tag<BFloat16>());
    case DType::Float64: return f(Tag<double>());
    case DType::Float32: break;
  }
  return f(Tag<float>());
}

template <bool B>
struct Bool {
  static constexpr bool value = B;
};

template <class F>
auto with_bool(bool b, F&& f) {
  return b ? f(Bool<true>()) : f(Bool<false>());
}

// If tau is a power of two, 1 / tau is exact, and multiplying by it rounds like dividing by tau.
inline bool has_exact_reciprocal(double tau) {
  int exponent;
  return frexp(tau, &exponent) == 0.5 && exponent < 100;
}

template <class S, class F>
auto with_neuron(const NeuronParams& p, F&& f) {
  if (p.kind == NeuronKind::IF) return f(Tag<IntegrateFire<S>>());
  if (p.kind == NeuronKind::LIF && !has_exact_reciprocal(p.tau)) return f(Tag<LeakyDivide<S>>());
  return f(Tag<LeakyMultiply<S>>());
}

SEWSNN_END
