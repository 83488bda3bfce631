// Converts run-time values to template arguments.
#pragma once

#include "core/dtype.h"
#include "core/lists.h"

SEWSNN_BEGIN

template <class F>
auto with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::Float16: return f(Tag<Half>());
    case DType::BFloat16: return f(Tag<BFloat16>());
    case DType::Float64: return f(Tag<double>());
    case DType::Float32: break;
  }
  return f(Tag<float>());
}

template <class F>
auto with_bool(bool b, F&& f) {
  return b ? f(Bool<true>()) : f(Bool<false>());
}

SEWSNN_END
