// Surrogate gradients sigma'(x) with x = h - v_threshold. Each has one parameter, from which the host computes its
// constants once. x is one S or a vector of S.
// sewsnn/surrogate.py has the same formulas with their primitives. The paper uses ATan, Rectangular, Constant and
// UnitATan (supplement, Table S3 and A.5).
#pragma once

#include "core/math.h"
#include "core/params.h"

SEWSNN_BEGIN

// alpha / 2 / (1 + (pi alpha x / 2)^2)
template <class S>
struct ATan {
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
  static UnitATan of(double a) { return {{S(1 + kPi * a * kPi * a), S(kPi)}}; }
};

// 1 / width for |x| < width / 2
template <class S>
struct Rectangular {
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
  S alpha, height;
  static Erf of(double a) { return {S(a), S(a / kSqrtPi)}; }
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = alpha * x;
    return height * exp_(-(y * y));
  }
};

// A surrogate that is chosen at run time.
template <class S>
struct Surrogate {
  SurrogateKind kind;
  union {
    ATan<S> atan;
    Rectangular<S> rectangular;
    Constant<S> constant;
    Sigmoid<S> sigmoid;
    PiecewiseQuadratic<S> piecewise_quadratic;
    PiecewiseExp<S> piecewise_exp;
    SoftSign<S> soft_sign;
    SuperSpike<S> super_spike;
    Erf<S> erf;
    UnitATan<S> unit_atan;
  };

  static Surrogate from(const NeuronParams& p) {
    Surrogate s;
    s.kind = p.surrogate;
    switch (p.surrogate) {
      case SurrogateKind::ATan: s.atan = ATan<S>::of(p.alpha); break;
      case SurrogateKind::Rectangular: s.rectangular = Rectangular<S>::of(p.alpha); break;
      case SurrogateKind::Constant: s.constant = Constant<S>::of(p.alpha); break;
      case SurrogateKind::Sigmoid: s.sigmoid = Sigmoid<S>::of(p.alpha); break;
      case SurrogateKind::PiecewiseQuadratic: s.piecewise_quadratic = PiecewiseQuadratic<S>::of(p.alpha); break;
      case SurrogateKind::PiecewiseExp: s.piecewise_exp = PiecewiseExp<S>::of(p.alpha); break;
      case SurrogateKind::SoftSign: s.soft_sign = SoftSign<S>::of(p.alpha); break;
      case SurrogateKind::SuperSpike: s.super_spike = SuperSpike<S>::of(p.alpha); break;
      case SurrogateKind::Erf: s.erf = Erf<S>::of(p.alpha); break;
      case SurrogateKind::UnitATan: s.unit_atan = UnitATan<S>::of(p.alpha); break;
    }
    return s;
  }

  // Whether it is ATan or UnitATan, and the one form of both.
  SEWSNN_HD static bool has_atan_form(SurrogateKind kind) {
    return kind == SurrogateKind::ATan || kind == SurrogateKind::UnitATan;
  }
  SEWSNN_HD ATan<S> atan_form() const { return kind == SurrogateKind::UnitATan ? ATan<S>(unit_atan) : atan; }

  // Calls f with the chosen surrogate.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
  template <class F>
  SEWSNN_HD auto visit(F&& f) const {
    switch (kind) {
      case SurrogateKind::Rectangular: return f(rectangular);
      case SurrogateKind::Constant: return f(constant);
      case SurrogateKind::Sigmoid: return f(sigmoid);
      case SurrogateKind::PiecewiseQuadratic: return f(piecewise_quadratic);
      case SurrogateKind::PiecewiseExp: return f(piecewise_exp);
      case SurrogateKind::SoftSign: return f(soft_sign);
      case SurrogateKind::SuperSpike: return f(super_spike);
      case SurrogateKind::Erf: return f(erf);
      case SurrogateKind::UnitATan: return f(unit_atan);
      case SurrogateKind::ATan: break;
    }
    return f(atan);
  }
};

SEWSNN_END
