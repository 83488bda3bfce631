// Storage types and the state they are computed in: float for float, half and bfloat16; double for double.
#pragma once

#include <cstring>

#include "core/macros.h"
#include "core/params.h"

SEWSNN_BEGIN

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class Storage>
struct StateOf {
  using type = float;
};
template <>
struct StateOf<double> {
  using type = double;
};
template <class Storage>
using State = typename StateOf<Storage>::type;

SEWSNN_HD float float_of(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
SEWSNN_HD uint32_t bits_of(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

SEWSNN_HD float load_(float x) { return x; }
SEWSNN_HD double load_(double x) { return x; }

SEWSNN_HD float load_(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }

SEWSNN_HD float load_(Half x) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
#else
  // Exponent and mantissa moved to their places in a float, then scaled by 2^(127 - 15): exact, subnormals included.
  const uint32_t magnitude = x.bits & 0x7fffu, sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t finite = bits_of(float_of(magnitude << 13) * float_of(239u << 23));
  const uint32_t special = (magnitude << 13) | 0x7f800000u;  // inf and NaN
  return float_of(sign | (magnitude >= 0x7c00u ? special : finite));
#endif
}

template <class Storage>
SEWSNN_HD Storage store_(State<Storage> x);

template <>
SEWSNN_HD float store_<float>(float x) {
  return x;
}
template <>
SEWSNN_HD double store_<double>(double x) {
  return x;
}

// Both narrow formats round to nearest, ties to even.
template <>
SEWSNN_HD BFloat16 store_<BFloat16>(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {uint16_t(x == x ? rounded : 0x7fc0u)};
}

template <>
SEWSNN_HD Half store_<Half>(float x) {
#if defined(__CUDA_ARCH__)
  Half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
  return h;
#else
  const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  // Normal: drop 13 bits with rounding; a carry may run into the exponent, up to infinity, as it should.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 1/2 leaves the value in units of 2^-24, the half's subnormal unit, in the low bits.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - (126u << 23);
  uint32_t r = magnitude < (113u << 23) ? subnormal : normal;
  r = magnitude >= (143u << 23) ? 0x7c00u : r;  // 65536 and above
  r = magnitude > 0x7f800000u ? 0x7e00u : r;    // NaN
  return {uint16_t(sign | r)};
#endif
}

SEWSNN_END
