// Surrogate gradients sigma'(x), x = h - v_threshold, one parameter each; x is one S, or a vector of them.
// sewsnn/surrogate.py holds the same formulas with their primitives; the paper's three are ATan, Rectangular and
// Constant (supplement, Table S3 and A.5).
#pragma once

#include "core/math.h"
#include "core/params.h"

SEWSNN_BEGIN

// alpha / 2 / (1 + (pi alpha x / 2)^2)
template <class S>
struct ATan {
  S half_alpha, scale;
  SEWSNN_HD explicit ATan(double a) : half_alpha(S(a / 2)), scale(S(kPi * a / 2)) {}
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = scale * x;
    return half_alpha / (S(1) + y * y);
  }
};

// 1 / width for |x| < width / 2
template <class S>
struct Rectangular {
  S height, half_width;
  SEWSNN_HD explicit Rectangular(double width) : height(S(1 / width)), half_width(S(width / 2)) {}
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    return select(abs_(x) < half_width, splat<V>(height), V{});
  }
};

// value
template <class S>
struct Constant {
  S value;
  SEWSNN_HD explicit Constant(double v) : value(S(v)) {}
  template <class V>
  SEWSNN_HD V operator()(V) const {
    return splat<V>(value);
  }
};

// alpha p (1 - p), p = 1 / (1 + e^-(alpha x)); written with e^-|alpha x|, which cannot overflow
template <class S>
struct Sigmoid {
  S alpha;
  SEWSNN_HD explicit Sigmoid(double a) : alpha(S(a)) {}
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V e = exp_(-abs_(alpha * x));
    const V d = S(1) + e;
    return alpha * e / (d * d);
  }
};

// max(0, alpha - alpha^2 |x|)
template <class S>
struct PiecewiseQuadratic {
  S alpha, alpha2;
  SEWSNN_HD explicit PiecewiseQuadratic(double a) : alpha(S(a)), alpha2(S(a * a)) {}
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
  SEWSNN_HD explicit PiecewiseExp(double a) : alpha(S(a)), half_alpha(S(a / 2)) {}
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    return half_alpha * exp_(-(alpha * abs_(x)));
  }
};

// 1 / (2 alpha (1 / alpha + |x|)^2)
template <class S>
struct SoftSign {
  S inverse, two_alpha;
  SEWSNN_HD explicit SoftSign(double a) : inverse(S(1 / a)), two_alpha(S(2 * a)) {}
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = inverse + abs_(x);
    return S(1) / (two_alpha * (y * y));
  }
};

// alpha / (1 + |x|)^2
template <class S>
struct SuperSpike {
  S alpha;
  SEWSNN_HD explicit SuperSpike(double a) : alpha(S(a)) {}
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = S(1) + abs_(x);
    return alpha / (y * y);
  }
};

// alpha / sqrt(pi) e^-(alpha x)^2
template <class S>
struct Erf {
  S alpha, height;
  SEWSNN_HD explicit Erf(double a) : alpha(S(a)), height(S(a / kSqrtPi)) {}
  template <class V>
  SEWSNN_HD V operator()(V x) const {
    const V y = alpha * x;
    return height * exp_(-(y * y));
  }
};

// Calls f with the surrogate of that kind.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class S, class F>
SEWSNN_HD auto with_surrogate(SurrogateKind kind, double alpha, F&& f) {
  switch (kind) {
    case SurrogateKind::Rectangular: return f(Rectangular<S>(alpha));
    case SurrogateKind::Constant: return f(Constant<S>(alpha));
    case SurrogateKind::Sigmoid: return f(Sigmoid<S>(alpha));
    case SurrogateKind::PiecewiseQuadratic: return f(PiecewiseQuadratic<S>(alpha));
    case SurrogateKind::PiecewiseExp: return f(PiecewiseExp<S>(alpha));
    case SurrogateKind::SoftSign: return f(SoftSign<S>(alpha));
    case SurrogateKind::SuperSpike: return f(SuperSpike<S>(alpha));
    case SurrogateKind::Erf: return f(Erf<S>(alpha));
    case SurrogateKind::ATan: break;
  }
  return f(ATan<S>(alpha));
}

SEWSNN_END
