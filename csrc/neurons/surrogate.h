// Surrogate gradients sigma'(x) with x = h - v_threshold. Each has one parameter, from which the host computes its
// constants once. x is one S or a vector of S. registry.h lists them.
// sewsnn/surrogate.py has the same formulas with their primitives. The paper uses ATan, Rectangular, Constant and
// UnitATan (supplement, Table S3 and A.5).
#pragma once

#include "core/math.h"
#include "core/params.h"

SEWSNN_BEGIN

// alpha / 2 / (1 + (pi alpha x / 2)^2)
template <class S>
struct ATan {
  static constexpr const char* kName = "ATan";
  S height, scale;
  static ATan of(double a) { return {S(a / 2), S(kPi * a / 2)}; }
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = scale * x;
    return divide_(height, S(1) + y * y);
  }
};

// (1 + (pi a)^2) / (1 + (pi x)^2), which is 1 at x = a and x = -a; the same form as ATan with other constants
template <class S>
struct UnitATan : ATan<S> {
  static constexpr const char* kName = "UnitATan";
  static UnitATan of(double a) { return {{S(1 + kPi * a * kPi * a), S(kPi)}}; }
};

// 1 / width for |x| < width / 2
template <class S>
struct Rectangular {
  static constexpr const char* kName = "Rectangular";
  S height, half_width;
  static Rectangular of(double width) { return {S(1 / width), S(width / 2)}; }
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    return select(abs_(x) < half_width, splat<V>(height), V{});
  }
};

// value
template <class S>
struct Constant {
  static constexpr const char* kName = "Constant";
  S value;
  static Constant of(double v) { return {S(v)}; }
  template <class V>
  SEWSNN_HD V operator()(V) const {
    return splat<V>(value);
  }
};

// alpha p (1 - p), p = 1 / (1 + e^-(alpha x)); written with e^-|alpha x|, which cannot overflow
template <class S>
struct Sigmoid {
  static constexpr const char* kName = "Sigmoid";
  S alpha;
  static Sigmoid of(double a) { return {S(a)}; }
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V e = exp_(-abs_(alpha * x));
    const V d = S(1) + e;
    return divide_(alpha * e, d * d);
  }
};

// max(0, alpha - alpha^2 |x|)
template <class S>
struct PiecewiseQuadratic {
  static constexpr const char* kName = "PiecewiseQuadratic";
  S alpha, alpha2;
  static PiecewiseQuadratic of(double a) { return {S(a), S(a * a)}; }
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = alpha - alpha2 * abs_(x);
    return select(y < S(0), V{}, y);
  }
};

// alpha / 2 e^-(alpha |x|)
template <class S>
struct PiecewiseExp {
  static constexpr const char* kName = "PiecewiseExp";
  S alpha, half_alpha;
  static PiecewiseExp of(double a) { return {S(a), S(a / 2)}; }
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    return half_alpha * exp_(-(alpha * abs_(x)));
  }
};

// 1 / (2 alpha (1 / alpha + |x|)^2)
template <class S>
struct SoftSign {
  static constexpr const char* kName = "SoftSign";
  S inverse, two_alpha;
  static SoftSign of(double a) { return {S(1 / a), S(2 * a)}; }
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = inverse + abs_(x);
    return divide_(S(1), two_alpha * (y * y));
  }
};

// alpha / (1 + |x|)^2
template <class S>
struct SuperSpike {
  static constexpr const char* kName = "SuperSpike";
  S alpha;
  static SuperSpike of(double a) { return {S(a)}; }
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = S(1) + abs_(x);
    return divide_(alpha, y * y);
  }
};

// alpha / sqrt(pi) e^-(alpha x)^2
template <class S>
struct Erf {
  static constexpr const char* kName = "Erf";
  S alpha, height;
  static Erf of(double a) { return {S(a), S(a / kSqrtPi)}; }
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = alpha * x;
    return height * exp_(-(y * y));
  }
};

SEWSNN_END
