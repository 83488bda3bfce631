// Conversions of PTX between types.
#include <cmath>
#include <limits>

#include "operations.h"

// clang-format off: lists of macros without semicolons look different after each run of it

namespace ptx {
namespace {

// A number in a format of 16 bits with `kMantissa` bits after the point and exponents from `kLowest` on: to nearest,
// ties to even. NaN becomes 0x7fff.
template <int kMantissa, int kLowest>
u16 narrowed(float x) {
  constexpr int kBias = 1 - kLowest;
  if (std::isnan(x)) return 0x7fff;
  const u16 sign = std::signbit(x) ? 0x8000 : 0;
  const double size = std::fabs(double(x));
  if (size == 0) return sign;
  const u16 infinity = u16((2 * kBias + 1) << kMantissa);
  if (std::isinf(size)) return sign | infinity;
  const int exponent = std::max(std::ilogb(size), kLowest);
  // In units of the last place: an integer, which overflows into the next exponent as its bits do.
  const auto units = u32(std::nearbyint(std::ldexp(size, kMantissa - exponent)));
  const u32 bits = (u32(exponent - kLowest) << kMantissa) + units;
  return sign | u16(std::min<u32>(bits, infinity));
}
u16 to_half(float x) { return narrowed<10, -14>(x); }
u16 to_bfloat16(float x) { return narrowed<7, -126>(x); }

float from_half(u16 bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float size = exponent == 31 ? (mantissa ? std::numeric_limits<float>::quiet_NaN() : INFINITY)
               : exponent     ? std::ldexp(float(1024 + mantissa), exponent - 25)
                              : std::ldexp(float(mantissa), -24);
  return bits & 0x8000 ? -size : size;
}

// To an integer; values outside its range become the nearest in the range, NaN becomes 0.
template <class R, class T>
R to_integer(T x) {
  if (std::isnan(x)) return 0;
  if (x <= T(std::numeric_limits<R>::min())) return std::numeric_limits<R>::min();
  if (x >= T(std::numeric_limits<R>::max())) return std::numeric_limits<R>::max();
  return R(x);
}

// A signed result fills its whole register.
template <class R>
using Register = std::conditional_t<std::is_signed_v<R>, s64, R>;

#define INTEGER(R, T) PTX_UNARY("cvt." #R "." #T, T, Register<R>, R(a))
#define TO_EVERY_INTEGER(T) \
  INTEGER(u8, T)            \
  INTEGER(u16, T) INTEGER(u32, T) INTEGER(u64, T) INTEGER(s8, T) INTEGER(s16, T) INTEGER(s32, T) INTEGER(s64, T)
#define FROM_EVERY_INTEGER(R)                                                             \
  PTX_UNARY("cvt.rn." #R ".u8", u8, R, a)                                                 \
  PTX_UNARY("cvt.rn." #R ".s8", s8, R, a)                                                 \
  PTX_UNARY("cvt.rn." #R ".u16", u16, R, a)                                               \
  PTX_UNARY("cvt.rn." #R ".s16", s16, R, a) PTX_UNARY("cvt.rn." #R ".u32", u32, R, a)     \
      PTX_UNARY("cvt.rn." #R ".s32", s32, R, a) PTX_UNARY("cvt.rn." #R ".u64", u64, R, a) \
          PTX_UNARY("cvt.rn." #R ".s64", s64, R, a)
#define ROUNDED(R, T)                                                     \
  PTX_UNARY("cvt.rzi." #R "." #T, T, R, to_integer<R>(std::trunc(a)))     \
  PTX_UNARY("cvt.rni." #R "." #T, T, R, to_integer<R>(std::nearbyint(a))) \
  PTX_UNARY("cvt.rmi." #R "." #T, T, R, to_integer<R>(std::floor(a)))     \
  PTX_UNARY("cvt.rpi." #R "." #T, T, R, to_integer<R>(std::ceil(a)))
#define INTEGRAL(T)                                        \
  PTX_UNARY("cvt.rzi." #T "." #T, T, T, std::trunc(a))     \
  PTX_UNARY("cvt.rni." #T "." #T, T, T, std::nearbyint(a)) \
  PTX_UNARY("cvt.rmi." #T "." #T, T, T, std::floor(a))     \
  PTX_UNARY("cvt.rpi." #T "." #T, T, T, std::ceil(a))

}  // namespace

void add_conversions(Table& table) {
  TO_EVERY_INTEGER(u8)
  TO_EVERY_INTEGER(u16)
  TO_EVERY_INTEGER(u32)
  TO_EVERY_INTEGER(u64)
  TO_EVERY_INTEGER(s8)
  TO_EVERY_INTEGER(s16)
  TO_EVERY_INTEGER(s32)
  TO_EVERY_INTEGER(s64)
  FROM_EVERY_INTEGER(f32)
  FROM_EVERY_INTEGER(f64)
  ROUNDED(s32, f32)
  ROUNDED(u32, f32)
  ROUNDED(s64, f32)
  ROUNDED(u64, f32)
  ROUNDED(s32, f64)
  ROUNDED(u32, f64)
  ROUNDED(s64, f64)
  ROUNDED(u64, f64)
  INTEGRAL(f32)
  INTEGRAL(f64)
  PTX_UNARY("cvt.f64.f32", f32, f64, a)
  PTX_UNARY("cvt.rn.f32.f64", f64, f32, a)
  PTX_UNARY("cvt.sat.f32.f32", f32, f32, a > 0 ? (a < 1 ? a : 1.f) : 0.f)
  PTX_UNARY("cvt.f32.f16", u16, f32, from_half(a))
  PTX_UNARY("cvt.f32.bf16", u16, u32, u32(a) << 16)
  PTX_UNARY("cvt.rn.f16.f32", f32, u16, to_half(a))
  PTX_UNARY("cvt.rn.bf16.f32", f32, u16, to_bfloat16(a))
  // The first operand goes into the upper half.
  PTX_BINARY("cvt.rn.f16x2.f32", f32, u32, u32(to_half(a)) << 16 | to_half(b))
  PTX_BINARY("cvt.rn.bf16x2.f32", f32, u32, u32(to_bfloat16(a)) << 16 | to_bfloat16(b))
}

}  // namespace ptx
