// Arithmetic for a number (device threads) and for a vector of lanes (CPU kernels, core/vector.h) in one source. V is
// float, double, or a vector of them.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/macros.h"

SEWSNN_BEGIN

constexpr double kPi = 3.14159265358979323846;
constexpr double kSqrtPi = 1.77245385090551602730;

// The type of one lane, and unsigned integers with the shape of V.
template <class V>
struct LaneOf {
  using type = std::remove_reference_t<decltype(std::declval<V&>()[0])>;
};
template <>
struct LaneOf<float> {
  using type = float;
};
template <>
struct LaneOf<double> {
  using type = double;
};
template <class V>
using Lane = typename LaneOf<V>::type;

template <class V>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <class V>
using Bits = typename BitsOf<V>::type;

template <class To, class From>
SEWSNN_HD To bit_cast_(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// s in every lane.
template <class V>
SEWSNN_HD V splat(Lane<V> s) {
  return s - V{};
}

// A number for every lane, or a number for each, as V.
template <class V, class X>
SEWSNN_HD V in_lanes(X x) {
  if constexpr (std::is_same_v<X, V>) return x;
  else return splat<V>(x);
}

// a where the condition holds, else b, for each lane, without a branch.
template <class C, class V>
SEWSNN_HD V select(C condition, V a, V b) {
  return condition ? a : b;
}

template <class V>
SEWSNN_HD V abs_(V x) {
  return select(x < Lane<V>(0), -x, x);
}

// The nearest integer; of two, the even one. Exact for |x| <= 2^22 (double: 2^51), which a number of spikes does not
// exceed; NaN stays NaN.
template <class V>
SEWSNN_HD V round_(V x) {
#if defined(__CUDA_ARCH__)
  return std::is_same_v<V, double> ? V(rint(double(x))) : V(rintf(float(x)));
#else
  constexpr Lane<V> shift =
      sizeof(Lane<V>) == 8 ? Lane<V>(6755399441055744.0) : Lane<V>(12582912.0);  // 1.5 * 2^52, 2^23
  return (x + shift) - shift;
#endif
}

// a / b for gradients. On the device the result is within 2 ulp, and 0 where b exceeds 2^126 or where the result would
// be subnormal, so that no rare case needs more instructions. This accuracy suffices, because no gradient is compared
// with a threshold.
template <class A, class V>
SEWSNN_HD V divide_(A a, V b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<V, float>) {
    float quotient;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(quotient) : "f"(float(a)), "f"(b));
    return quotient;
  }
#endif
  return a / b;
}

// The exponential. On the device it is expf. In double precision (gradient checks) it is exp of libm. For floats on the
// host it is a formula that compilers can vectorise, unlike a call of libm: x = n ln2 + r with |r| <= ln2 / 2, e^r by
// its Taylor polynomial of degree 7, 2^n by the exponent bits. For x <= 0 (surrogates need no other x) it is within
// 2 ulp. Below -87.3 it is 0 (no subnormals). NaN stays NaN.
template <class V>
SEWSNN_HD V exp_(V x) {
  if constexpr (std::is_same_v<V, double>) {
    return exp(x);
  } else if constexpr (std::is_same_v<Lane<V>, double>) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(double); ++i) x[i] = exp(x[i]);
    return x;
  } else {
#if defined(__CUDA_ARCH__)
    return expf(x);
#else
    const V clamped = select(x < -87.3f, splat<V>(-87.3f), x);
    const V shifted = clamped * 1.44269504088896341f + 12582912.0f;  // adding 1.5 * 2^23 rounds to nearest
    const V n = shifted - 12582912.0f;
    const V r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln2 in two parts
    V p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    // The low bits of `shifted` are n in two's complement.
    const V power = bit_cast_<V>((bit_cast_<Bits<V> >(shifted) + 127u) << 23);
    return select(x < -87.3f, splat<V>(0), p * power);
#endif
  }
}

SEWSNN_END
