// How an operation is written: a name of PTX, types and an expression of its operands a, b and c.
#pragma once

#include "machine.h"

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;

#define PTX_UNARY(name, T, R, expression)             \
  table[name] = [](Thread& t, const Instruction& i) { \
    const T a = t.get<T>(i.x[1]);                     \
    t.put<R>(i.x[0], R(expression));                  \
  };
#define PTX_BINARY(name, T, R, expression)            \
  table[name] = [](Thread& t, const Instruction& i) { \
    const T a = t.get<T>(i.x[1]);                     \
    const T b = t.get<T>(i.x[2]);                     \
    t.put<R>(i.x[0], R(expression));                  \
  };
#define PTX_TERNARY(name, T, C, R, expression)        \
  table[name] = [](Thread& t, const Instruction& i) { \
    const T a = t.get<T>(i.x[1]);                     \
    const T b = t.get<T>(i.x[2]);                     \
    const C c = t.get<C>(i.x[3]);                     \
    t.put<R>(i.x[0], R(expression));                  \
  };

}  // namespace ptx
