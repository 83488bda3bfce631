// Vectors for the instruction set that this file is compiled for (vector extensions of GCC and Clang), and their loads
// and stores. CPU only.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/dtype.h"

SEWSNN_BEGIN

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class S>
struct VectorOf {
  typedef S type __attribute__((vector_size(kVectorBytes)));
};
template <class S>
using Vector = typename VectorOf<S>::type;
template <class S>
constexpr int kLanes = kVectorBytes / int(sizeof(S));

template <>
struct BitsOf<Vector<float>> {
  using type = Vector<uint32_t>;
};
// As many doubles as a vector of S has lanes.
template <class S>
struct DoublesOf {
  typedef double type __attribute__((vector_size(kLanes<S> * 8)));
};
template <class S>
using Doubles = typename DoublesOf<S>::type;
// As many 16-bit numbers as a vector has floats.
typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2)));

// ---- loads and stores of vectors at any address

template <class R>
inline R read(const void* p) {
  R r;
  memcpy(&r, p, sizeof r);
  return r;
}

template <class R>
inline void write(void* p, R r) {
  memcpy(p, &r, sizeof r);
}

// Writes past the cache. A result that is larger than the cache would evict useful data, and the processor would read
// each of its cache lines before writing it. p must be a multiple of the vector's size.
template <class R>
inline void stream(void* p, R r) {
#if defined(__AVX512F__)
  if constexpr (sizeof r == 64) return _mm512_stream_si512(static_cast<__m512i*>(p), bit_cast_<__m512i>(r));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof r == 32) return _mm256_stream_si256(static_cast<__m256i*>(p), bit_cast_<__m256i>(r));
#endif
#if defined(__x86_64__)
  if constexpr (sizeof r == 16) return _mm_stream_si128(static_cast<__m128i*>(p), bit_cast_<__m128i>(r));
  if constexpr (sizeof r == 8) return _mm_stream_si64(static_cast<long long*>(p), bit_cast_<long long>(r));
#endif
  write(p, r);
}

// Call this after streaming writes: without it, other threads may see them in any order.
inline void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Prefetches into the second-level cache. Any address is allowed.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// ---- storage <-> a vector of states

#if defined(__AVX512F__)
// Masked conversions with all lanes selected: GCC 12 warns about undefined lanes in the plain conversions.
constexpr __mmask16 kAll = 0xffff;
inline Vector<float> widen(Half, Narrow r) {
  return bit_cast_<Vector<float>>(_mm512_maskz_cvtph_ps(kAll, bit_cast_<__m256i>(r)));
}
inline Narrow narrow(Half, Vector<float> v) {
  return bit_cast_<Narrow>(_mm512_maskz_cvtps_ph(kAll, bit_cast_<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__) && defined(__F16C__)
inline Vector<float> widen(Half, Narrow r) { return bit_cast_<Vector<float>>(_mm256_cvtph_ps(bit_cast_<__m128i>(r))); }
inline Narrow narrow(Half, Vector<float> v) {
  return bit_cast_<Narrow>(_mm256_cvtps_ph(bit_cast_<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#endif
template <class Storage>
inline Vector<float> widen(Storage storage, Narrow r) {
  return decode<Vector<float>>(storage, __builtin_convertvector(r, Bits<Vector<float>>));
}
template <class Storage>
inline Narrow narrow(Storage storage, Vector<float> v) {
  return __builtin_convertvector(encode(storage, v), Narrow);
}

template <class Storage>
inline Vector<State<Storage>> load_vector(const Storage* p) {
  if constexpr (std::is_same_v<Storage, State<Storage>>) return read<Vector<Storage>>(p);
  else return widen(Storage(), read<Narrow>(p));
}

template <class Storage>
inline void store_vector(Storage* p, Vector<State<Storage>> v) {
  if constexpr (std::is_same_v<Storage, State<Storage>>) write(p, v);
  else write(p, narrow(Storage(), v));
}

template <class Storage>
inline void stream_vector(Storage* p, Vector<State<Storage>> v) {
  if constexpr (std::is_same_v<Storage, State<Storage>>) stream(p, v);
  else stream(p, narrow(Storage(), v));
}

SEWSNN_END
