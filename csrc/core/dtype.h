// Storage types, and the type of the state in which kernels compute: float for float, half and bfloat16; double for
// double. Integer arithmetic converts half and bfloat16. One source serves a number and a vector of lanes: F is float
// or a vector of floats, and U = Bits<F> holds the 16 bits of each number in 32 bits.
#pragma once

#include "core/access.h"

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

// ---- decode: the number that the bits stand for; exact

template <class F>
SEWSNN_HD F decode(BFloat16, Bits<F> bits) {
  return bit_cast_<F>(bits << 16);
}

// Moves exponent and mantissa to their places in a float, then scales by 2^(127 - 15); this also handles subnormals.
template <class F>
SEWSNN_HD F decode(Half, Bits<F> bits) {
  using U = Bits<F>;
  const U magnitude = bits & 0x7fffu, sign = (bits & 0x8000u) << 16;
  const U finite = bit_cast_<U>(bit_cast_<F>(magnitude << 13) * bit_cast_<float>(239u << 23));
  const U special = (magnitude << 13) | 0x7f800000u;  // inf and NaN
  return bit_cast_<F>(sign | select(magnitude >= 0x7c00u, special, finite));
}

// ---- encode: rounds to nearest, ties to even

template <class F>
SEWSNN_HD Bits<F> encode(BFloat16, F x) {
  using U = Bits<F>;
  const U bits = bit_cast_<U>(x);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return select((bits & 0x7fffffffu) > 0x7f800000u, U{} + 0x7fc0u, rounded);  // NaN
}

template <class F>
SEWSNN_HD Bits<F> encode(Half, F x) {
  using U = Bits<F>;
  const U bits = bit_cast_<U>(x), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  // Normal numbers: drop 13 bits with rounding. A carry may go into the exponent, up to infinity; that is correct.
  const U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 1/2 leaves the value in units of 2^-24, the half's subnormal unit, in the low bits.
  const U subnormal = bit_cast_<U>(bit_cast_<F>(magnitude) + 0.5f) - (126u << 23);
  U r = select(magnitude < (113u << 23), subnormal, normal);
  r = select(magnitude >= (143u << 23), U{} + 0x7c00u, r);  // 65536 and above
  r = select(magnitude > 0x7f800000u, U{} + 0x7e00u, r);    // NaN
  return sign | r;
}

// ---- one number

SEWSNN_HD float load_(float x) { return x; }
SEWSNN_HD double load_(double x) { return x; }
SEWSNN_HD float load_(BFloat16 x) { return decode<float>(x, x.bits); }
SEWSNN_HD float load_(Half x) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
#else
  return decode<float>(x, x.bits);
#endif
}

template <class Storage>
SEWSNN_HD Storage store_(State<Storage> x) {
  if constexpr (std::is_same_v<Storage, State<Storage>>) {
    return x;
  } else {
#if defined(__CUDA_ARCH__)
    if constexpr (std::is_same_v<Storage, Half>) {
      Half h;
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
      return h;
    }
#endif
    return {uint16_t(encode(Storage(), x))};
  }
}

// ---- N numbers

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define SEWSNN_PAIRS 1
__device__ __forceinline__ uint32_t encode_pair(Half, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint32_t encode_pair(BFloat16, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
#else
#define SEWSNN_PAIRS 0
#endif

// Converts two numbers at a time where the device has an instruction for that.
template <class Storage, int N>
SEWSNN_HD Pack<Storage, N> store_(const Pack<State<Storage>, N>& x) {
  Pack<Storage, N> out;
  if constexpr (SEWSNN_PAIRS && sizeof(Storage) == 2 && N % 2 == 0) {
    uint32_t words[N / 2];
    SEWSNN_UNROLL
    for (int j = 0; j < N / 2; ++j) words[j] = encode_pair(Storage(), x.at[2 * j], x.at[2 * j + 1]);
    memcpy(&out, words, sizeof out);
  } else {
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) out.at[j] = store_<Storage>(x.at[j]);
  }
  return out;
}

SEWSNN_END
