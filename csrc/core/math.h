// exp and abs, the same text for host vectors and device threads.
#pragma once

#include <cmath>
#include <cstring>

#include "core/macros.h"

SEWSNN_BEGIN

constexpr double kPi = 3.14159265358979323846;
constexpr double kSqrtPi = 1.77245385090551602730;

SEWSNN_HD float abs_(float x) { return fabsf(x); }
SEWSNN_HD double abs_(double x) { return fabs(x); }

SEWSNN_HD double exp_(double x) { return exp(x); }

// On the device the library's expf. On the host a form the compiler turns into vector code, which a call to libm stops
// it from doing: x = n ln2 + r, |r| <= ln2 / 2, e^r by its Taylor polynomial of degree 7, 2^n by the exponent bits. For
// x <= 0 (all that the surrogates ask) within 2 ulp; below -87.3 the result is 0 (no subnormals); NaN stays NaN.
SEWSNN_HD float exp_(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  const float clamped = x < -87.3f ? -87.3f : x;
  const float shifted = clamped * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to nearest
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln2 in two parts
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;  // the low bits of `shifted` are n in two's complement
  float power;
  std::memcpy(&power, &bits, 4);
  const float y = p * power;
  return x < -87.3f ? 0.0f : y;
#endif
}

SEWSNN_END
