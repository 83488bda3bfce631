// How device code reads and writes global memory: every access of every kernel goes through load_global and
// store_global. The host build of the kernels (tests/native) puts its checks and counts into the two SEWSNN_TRACE
// marks.
#pragma once

#include "core/macros.h"
#include "core/params.h"

#ifndef SEWSNN_TRACE_LOAD
#define SEWSNN_TRACE_LOAD(p, bytes)
#define SEWSNN_TRACE_STORE(p, bytes)
#endif

SEWSNN_BEGIN

template <class T>
SEWSNN_HD T load_global(const T* p) {
  SEWSNN_TRACE_LOAD(p, sizeof(T));
  return *p;
}

template <class T>
SEWSNN_HD void store_global(T* p, const T& value) {
  SEWSNN_TRACE_STORE(p, sizeof(T));
  *p = value;
}

// N neighbours, moved in one access where that has at most 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <class T, int N>
SEWSNN_HD Pack<T, N> fill_pack(T value) {
  Pack<T, N> pack;
  SEWSNN_UNROLL
  for (int j = 0; j < N; ++j) pack.at[j] = value;
  return pack;
}

// N neighbours from index i of row t.
template <class T, int N>
SEWSNN_HD Pack<T, N> load_pack(const Rows& rows, int64_t t, int64_t i) {
  const T* const data = static_cast<const T*>(rows.data) + t * rows.row_stride;
  if (rows.step == 0) return fill_pack<T, N>(load_global(data));
  return load_global(reinterpret_cast<const Pack<T, N>*>(data + i));
}

template <class T, int N>
SEWSNN_HD void store_pack(void* out, int64_t index, const Pack<T, N>& pack) {
  store_global(reinterpret_cast<Pack<T, N>*>(static_cast<T*>(out) + index), pack);
}

SEWSNN_END
