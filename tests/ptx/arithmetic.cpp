// Arithmetic, comparisons and logic of PTX. Every operation rounds as PTX defines it; those whose result PTX leaves
// open within an error (div.approx, ex2.approx and others) give the exact result, rounded once. With "/worst" behind
// their name they are wrong by that error: 2 ulp.
#include <cfenv>
#include <cmath>
#include <limits>

#include "operations.h"

// clang-format off: lists of macros without semicolons look different after each run of it

namespace ptx {
namespace {

// a * b + c, rounded down.
__attribute__((noinline)) float fma_down(float a, float b, float c) {
  volatile float va = a, vb = b, vc = c;  // keeps the operation between the two changes of the mode
  std::fesetround(FE_DOWNWARD);
  volatile const float r = std::fma(va, vb, vc);
  std::fesetround(FE_TONEAREST);
  return r;
}

float flushed(float a) { return std::fabs(a) < std::numeric_limits<float>::min() ? std::copysign(0.f, a) : a; }

// div.approx: a multiplication by the reciprocal, which is 0 where b exceeds 2^126.
float divided(float a, float b) {
  const float size = std::fabs(b);
  if (size > 0x1p126f && size <= std::numeric_limits<float>::max())
    return std::isinf(a) || std::isnan(a) ? std::numeric_limits<float>::quiet_NaN()
                                          : std::copysign(0.f, std::signbit(a) != std::signbit(b) ? -1.f : 1.f);
  return a / b;
}

// A result that is wrong by the error that NVIDIA documents: `ulp` units in the last place or less, up or down.
float wrong(float exact, int ulp, u32 seed) {
  if (!std::isnormal(exact)) return exact;
  u32 bits;
  memcpy(&bits, &exact, sizeof bits);
  bits += u32(int((seed ^ bits) * 2654435761u >> 16) % (2 * ulp + 1) - ulp);
  float r;
  memcpy(&r, &bits, sizeof r);
  return std::isnormal(r) ? r : exact;
}

// Minimum and maximum, which are NaN only if both are NaN; -0 is below +0.
template <class T>
T least(T a, T b) {
  if (a == b) return std::signbit(a) ? a : b;
  return std::fmin(a, b);
}
template <class T>
T largest(T a, T b) {
  if (a == b) return std::signbit(a) ? b : a;
  return std::fmax(a, b);
}

template <class T>
T divisor(T b) {
  if (b == 0) host_device::fail("an integer division by zero");
  return b;
}

template <class T>
T field(T bits, u32 start, u32 length) {
  if (length == 0 || start >= 8 * sizeof(T)) return 0;
  const T mask = length >= 8 * sizeof(T) ? T(-1) : T((T(1) << length) - 1);
  return T(bits >> start) & mask;
}

// bfi: the `length` low bits of a at place `start` of b.
template <class T>
T inserted(T a, T b, u32 start, u32 length) {
  start &= 0xff, length &= 0xff;
  if (length == 0 || start >= 8 * sizeof(T)) return b;
  const T mask = T(field<T>(T(-1), 0, length) << start);
  return T(b & ~mask) | (T(a << start) & mask);
}

u32 permuted(u32 a, u32 b, u32 selector) {
  const u64 both = u64(b) << 32 | a;
  u32 r = 0;
  for (int k = 0; k < 4; ++k) {
    const u32 pick = selector >> 4 * k & 0xf;
    u8 byte = u8(both >> 8 * (pick & 7));
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    r |= u32(byte) << 8 * k;
  }
  return r;
}

#define SIGNED_AND_UNSIGNED(PTX_OP, name, expression)                                 \
  PTX_OP(name ".s16", s16, s16, expression)                                           \
  PTX_OP(name ".u16", u16, u16, expression)                                           \
  PTX_OP(name ".s32", s32, s32, expression)                                           \
  PTX_OP(name ".u32", u32, u32, expression) PTX_OP(name ".s64", s64, s64, expression) \
      PTX_OP(name ".u64", u64, u64, expression)
// Operations that wrap around are the same for both signs.
#define WRAPPING(PTX_OP, name, expression)                                            \
  PTX_OP(name ".s16", u16, u16, expression)                                           \
  PTX_OP(name ".u16", u16, u16, expression)                                           \
  PTX_OP(name ".s32", u32, u32, expression)                                           \
  PTX_OP(name ".u32", u32, u32, expression) PTX_OP(name ".s64", u64, u64, expression) \
      PTX_OP(name ".u64", u64, u64, expression)
#define BITWISE(PTX_OP, name, expression)   \
  PTX_OP(name ".b16", u16, u16, expression) \
  PTX_OP(name ".b32", u32, u32, expression) \
  PTX_OP(name ".b64", u64, u64, expression) PTX_OP(name ".pred", u8, u8, expression)

void add_integers(Table& table) {
  WRAPPING(PTX_BINARY, "add", u64(a) + b)
  WRAPPING(PTX_BINARY, "sub", u64(a) - b)
  WRAPPING(PTX_BINARY, "mul.lo", u64(a) * b)
  WRAPPING(PTX_UNARY, "neg", 0 - u64(a))
#define MAD(type, T) PTX_TERNARY("mad.lo." type, T, T, T, u64(a) * b + c)
  MAD("s16", u16)
  MAD("u16", u16)
  MAD("s32", u32)
  MAD("u32", u32) MAD("s64", u64) MAD("u64", u64) PTX_BINARY("mul.wide.s16", s16, s32, s32(a) * b)
      PTX_BINARY("mul.wide.u16", u16, u32, u32(a) * b) PTX_BINARY("mul.wide.s32", s32, s64, s64(a) * b) PTX_BINARY(
          "mul.wide.u32", u32, u64, u64(a) * b) PTX_TERNARY("mad.wide.s32", s32, u64, u64, u64(s64(a) * b) + c)
          PTX_TERNARY("mad.wide.u32", u32, u64, u64, u64(a) * b + c)
              PTX_BINARY("mul.hi.s32", s32, s32, s64(a) * b >> 32) PTX_BINARY("mul.hi.u32", u32, u32, u64(a) * b >> 32)
                  PTX_BINARY("mul.hi.s64", s64, s64, static_cast<__int128>(a) * b >> 64)
                      PTX_BINARY("mul.hi.u64", u64, u64, static_cast<unsigned __int128>(a) * b >> 64)
                          SIGNED_AND_UNSIGNED(PTX_BINARY, "div", a / divisor(b))
                              SIGNED_AND_UNSIGNED(PTX_BINARY, "rem", a % divisor(b))
                                  SIGNED_AND_UNSIGNED(PTX_BINARY, "min", a < b ? a : b)
                                      SIGNED_AND_UNSIGNED(PTX_BINARY, "max", a > b ? a : b)
                                          PTX_UNARY("abs.s32", s32, u32, a < 0 ? 0 - u32(a) : u32(a))
                                              PTX_UNARY("abs.s64", s64, u64, a < 0 ? 0 - u64(a) : u64(a))
}

void add_bits(Table& table) {
  BITWISE(PTX_BINARY, "and", a & b)
  BITWISE(PTX_BINARY, "or", a | b)
  BITWISE(PTX_BINARY, "xor", a ^ b)
  PTX_UNARY("not.b16", u16, u16, ~a)
  PTX_UNARY("not.b32", u32, u32, ~a)
  PTX_UNARY("not.b64", u64, u64, ~a)
  PTX_UNARY("not.pred", u8, u8, !(a & 1))
  // A shift by more than all bits leaves zeros, or copies of the sign.
#define SHIFT(name, T, expression)                    \
  table[name] = [](Thread& t, const Instruction& i) { \
    const T a = t.get<T>(i.x[1]);                     \
    const u32 n = t.get<u32>(i.x[2]);                 \
    constexpr u32 kBits = 8 * sizeof(T);              \
    t.put<T>(i.x[0], T(expression));                  \
  };
#define SHIFTS(bits)                                         \
  SHIFT("shl.b" #bits, u##bits, n < kBits ? u64(a) << n : 0) \
  SHIFT("shr.b" #bits, u##bits, n < kBits ? a >> n : 0)      \
  SHIFT("shr.u" #bits, u##bits, n < kBits ? a >> n : 0)      \
  SHIFT("shr.s" #bits, s##bits, a >> (n < kBits ? n : kBits - 1))
  SHIFTS(16)
  SHIFTS(32)
  SHIFTS(64)
#define INSERT(name, T)                                                                                     \
  table[name] = [](Thread& t, const Instruction& i) {                                                       \
    t.put<T>(i.x[0], inserted(t.get<T>(i.x[1]), t.get<T>(i.x[2]), t.get<u32>(i.x[3]), t.get<u32>(i.x[4]))); \
  };
  INSERT("bfi.b32", u32)
  INSERT("bfi.b64", u64)
  table["bfe.u32"] = [](Thread& t, const Instruction& i) {
    t.put<u32>(i.x[0], field(t.get<u32>(i.x[1]), t.get<u32>(i.x[2]) & 0xff, t.get<u32>(i.x[3]) & 0xff));
  };
  PTX_TERNARY("prmt.b32", u32, u32, u32, permuted(a, b, c))
  PTX_UNARY("popc.b32", u32, u32, __builtin_popcount(a))
  PTX_UNARY("popc.b64", u64, u32, __builtin_popcountll(a))
  PTX_UNARY("clz.b32", u32, u32, a ? __builtin_clz(a) : 32)
}

void add_comparisons(Table& table) {
#define COMPARE(T)                         \
  PTX_BINARY("setp.eq." #T, T, u8, a == b) \
  PTX_BINARY("setp.ne." #T, T, u8, a != b) \
  PTX_BINARY("setp.lt." #T, T, u8, a < b)  \
  PTX_BINARY("setp.le." #T, T, u8, a <= b) \
  PTX_BINARY("setp.gt." #T, T, u8, a > b)  \
  PTX_BINARY("setp.ge." #T, T, u8, a >= b)
#define UNORDERED(T)                                   \
  PTX_BINARY("setp.ne." #T, T, u8, a<b || a> b)        \
  PTX_BINARY("setp.equ." #T, T, u8, !(a < b || a > b)) \
  PTX_BINARY("setp.neu." #T, T, u8, a != b)            \
  PTX_BINARY("setp.ltu." #T, T, u8, !(a >= b))         \
  PTX_BINARY("setp.leu." #T, T, u8, !(a > b))          \
  PTX_BINARY("setp.gtu." #T, T, u8, !(a <= b))         \
  PTX_BINARY("setp.geu." #T, T, u8, !(a < b))          \
  PTX_BINARY("setp.num." #T, T, u8, a == a && b == b)  \
  PTX_BINARY("setp.nan." #T, T, u8, a != a || b != b)
  COMPARE(s16)
  COMPARE(u16)
  COMPARE(s32)
  COMPARE(u32)
  COMPARE(s64)
  COMPARE(u64)
  COMPARE(f32)
  COMPARE(f64)
  UNORDERED(f32)
  UNORDERED(f64)
#define EQUAL(bits)                                  \
  PTX_BINARY("setp.eq.b" #bits, u##bits, u8, a == b) \
  PTX_BINARY("setp.ne.b" #bits, u##bits, u8, a != b)
  EQUAL(16)
  EQUAL(32)
  EQUAL(64)
}

void add_floats(Table& table) {
#define FLOAT(T)                                        \
  PTX_BINARY("add.rn." #T, T, T, a + b)                 \
  PTX_BINARY("sub.rn." #T, T, T, a - b)                 \
  PTX_BINARY("mul.rn." #T, T, T, a* b)                  \
  PTX_BINARY("add." #T, T, T, a + b)                    \
  PTX_BINARY("sub." #T, T, T, a - b)                    \
  PTX_BINARY("mul." #T, T, T, a* b)                     \
  PTX_BINARY("div.rn." #T, T, T, a / b)                 \
  PTX_TERNARY("fma.rn." #T, T, T, T, std::fma(a, b, c)) \
  PTX_UNARY("rcp.rn." #T, T, T, 1 / a)                  \
  PTX_UNARY("sqrt.rn." #T, T, T, std::sqrt(a))          \
  PTX_UNARY("neg." #T, T, T, -a)                        \
  PTX_UNARY("abs." #T, T, T, std::fabs(a))              \
  PTX_BINARY("copysign." #T, T, T, std::copysign(b, a)) \
  PTX_BINARY("min." #T, T, T, least(a, b))              \
  PTX_BINARY("max." #T, T, T, largest(a, b))
  FLOAT(f32)
  FLOAT(f64)
  PTX_TERNARY("fma.rm.f32", f32, f32, f32, fma_down(a, b, c))
  PTX_BINARY("div.full.f32", f32, f32, a / b)
  PTX_BINARY("div.approx.f32", f32, f32, divided(a, b))
  PTX_BINARY("div.approx.ftz.f32", f32, f32, flushed(divided(flushed(a), flushed(b))))
  PTX_BINARY("div.approx.ftz.f32/worst", f32, f32, flushed(wrong(divided(flushed(a), flushed(b)), 2, u32(t.next))))
  PTX_UNARY("ex2.approx.ftz.f32/worst", f32, f32, wrong(flushed(float(std::exp2(double(flushed(a))))), 2, u32(t.next)))
  PTX_UNARY("rcp.approx.f32", f32, f32, 1 / a)
  PTX_UNARY("sqrt.approx.f32", f32, f32, std::sqrt(a))
  PTX_UNARY("rsqrt.approx.f32", f32, f32, 1 / std::sqrt(double(a)))
  PTX_UNARY("ex2.approx.f32", f32, f32, std::exp2(double(a)))
  PTX_UNARY("rcp.approx.ftz.f32", f32, f32, flushed(1 / flushed(a)))
  PTX_UNARY("ex2.approx.ftz.f32", f32, f32, flushed(float(std::exp2(double(flushed(a))))))
  PTX_UNARY("lg2.approx.f32", f32, f32, std::log2(double(a)))
}

}  // namespace

void add_arithmetic(Table& table) {
  add_integers(table);
  add_bits(table);
  add_comparisons(table);
  add_floats(table);
}

}  // namespace ptx
