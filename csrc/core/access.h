// Access of CUDA kernels to global memory. Every access goes through load_global or store_global, which move a pack of
// 16, 8, 4, 2 or 1 bytes in one instruction. The compiler does not choose the instruction, because it takes structs
// apart and stores most of them number by number. In the host build of the kernels (tests/native) the SEWSNN_TRACE
// macros check and count every access.
#pragma once

#include "core/macros.h"
#include "core/math.h"
#include "core/params.h"

#ifndef SEWSNN_TRACE_LOAD
#define SEWSNN_TRACE_LOAD(p, bytes)
#define SEWSNN_TRACE_STORE(p, bytes)
#define SEWSNN_TRACE_BEGIN()
#endif

SEWSNN_BEGIN

// Every kernel calls this before it touches memory. With programmatic dependent launch (multistep_launch.cuh) a kernel
// may begin while the kernel before it on the stream still runs: it waits here until that one has ended and its writes
// are visible. It also allows the next kernel to begin, whose blocks are placed when no block of this one waits for a
// place.
SEWSNN_HD void wait_for_earlier_kernels() {
  SEWSNN_TRACE_BEGIN();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if defined(__CUDA_ARCH__)
// A kernel does not write the memory that it reads with load_word, so these loads need not wait for earlier stores.
__device__ __forceinline__ uint4 load_word(const uint4* p) { return __ldg(p); }
__device__ __forceinline__ uint2 load_word(const uint2* p) { return __ldg(p); }
__device__ __forceinline__ uint32_t load_word(const uint32_t* p) { return __ldg(p); }
__device__ __forceinline__ uint16_t load_word(const uint16_t* p) { return __ldg(p); }
__device__ __forceinline__ uint8_t load_word(const uint8_t* p) { return __ldg(p); }

__device__ __forceinline__ void store_word(uint4* p, uint4 w) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(w.x), "r"(w.y),
               "r"(w.z), "r"(w.w));
}
__device__ __forceinline__ void store_word(uint2* p, uint2 w) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(w.x), "r"(w.y));
}
__device__ __forceinline__ void store_word(uint32_t* p, uint32_t w) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(w));
}
__device__ __forceinline__ void store_word(uint16_t* p, uint16_t w) {
  asm volatile("st.global.b16 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "h"(w));
}

__device__ __forceinline__ void store_word(uint8_t* p, uint8_t w) {
  asm volatile("st.global.b8 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(uint32_t(w)));
}

__device__ __forceinline__ uint2 load_own_word(const uint2* p) {
  uint2 w;
  asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "l"(__cvta_generic_to_global(p)));
  return w;
}
__device__ __forceinline__ uint32_t load_own_word(const uint32_t* p) {
  uint32_t w;
  asm volatile("ld.global.b32 %0, [%1];" : "=r"(w) : "l"(__cvta_generic_to_global(p)));
  return w;
}

// Past the first-level cache, which may still have what was there before another block wrote.
__device__ __forceinline__ uint2 load_others_word(const uint2* p) {
  uint64_t w;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(w) : "l"(__cvta_generic_to_global(p)));
  return {uint32_t(w), uint32_t(w >> 32)};
}
__device__ __forceinline__ uint32_t load_others_word(const uint32_t* p) {
  uint32_t w;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(w) : "l"(__cvta_generic_to_global(p)));
  return w;
}

// Each leaves w as it is unless `wanted`. The condition is part of the instruction: around a branch the compiler would
// take each word apart into its numbers, and wait for the load to do so.
__device__ __forceinline__ void load_word_if(int wanted, const uint4* p, uint4& w) {
  asm("{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %4, 0;\n@wanted ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%5];\n}"
      : "+r"(w.x), "+r"(w.y), "+r"(w.z), "+r"(w.w)
      : "r"(wanted), "l"(__cvta_generic_to_global(p)));
}
__device__ __forceinline__ void load_word_if(int wanted, const uint2* p, uint2& w) {
  asm("{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %2, 0;\n@wanted ld.global.nc.v2.b32 {%0, %1}, [%3];\n}"
      : "+r"(w.x), "+r"(w.y)
      : "r"(wanted), "l"(__cvta_generic_to_global(p)));
}
__device__ __forceinline__ void load_word_if(int wanted, const uint32_t* p, uint32_t& w) {
  asm("{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %1, 0;\n@wanted ld.global.nc.b32 %0, [%2];\n}"
      : "+r"(w)
      : "r"(wanted), "l"(__cvta_generic_to_global(p)));
}
__device__ __forceinline__ void load_word_if(int wanted, const uint16_t* p, uint16_t& w) {
  asm("{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %1, 0;\n@wanted ld.global.nc.b16 %0, [%2];\n}"
      : "+h"(w)
      : "r"(wanted), "l"(__cvta_generic_to_global(p)));
}

__device__ __forceinline__ void load_word_if(int wanted, const uint8_t* p, uint8_t& w) {
  uint32_t wide = w;
  asm("{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %1, 0;\n@wanted ld.global.nc.u8 %0, [%2];\n}"
      : "+r"(wide)
      : "r"(wanted), "l"(__cvta_generic_to_global(p)));
  w = uint8_t(wide);
}

template <int Bytes>
using Word =
    std::conditional_t<Bytes % 16 == 0, uint4,
                       std::conditional_t<Bytes % 8 == 0, uint2,
                                          std::conditional_t<Bytes % 4 == 0, uint32_t,
                                                             std::conditional_t<Bytes % 2 == 0, uint16_t, uint8_t>>>>;
#endif

// p must be a multiple of the size of T, or of 16 bytes if T is larger.
template <class T>
SEWSNN_HD T load_global(const T* p) {
  SEWSNN_TRACE_LOAD(p, sizeof(T));
#if defined(__CUDA_ARCH__)
  using W = Word<int(sizeof(T))>;
  W words[sizeof(T) / sizeof(W)];
  SEWSNN_UNROLL
  for (int i = 0; i < int(sizeof(T) / sizeof(W)); ++i) words[i] = load_word(reinterpret_cast<const W*>(p) + i);
  T value;
  memcpy(&value, words, sizeof value);
  return value;
#else
  return *p;
#endif
}

// Loads only if `wanted`, otherwise returns zeros. The condition applies to whole words: if it applied to the numbers
// of a pack, the compiler would take each word apart at the load, and wait for it there.
template <class T>
SEWSNN_HD T load_global_if(bool wanted, const T* p) {
#if defined(__CUDA_ARCH__)
  using W = Word<int(sizeof(T))>;
  W words[sizeof(T) / sizeof(W)] = {};
  SEWSNN_UNROLL
  for (int i = 0; i < int(sizeof(T) / sizeof(W)); ++i)
    load_word_if(wanted, reinterpret_cast<const W*>(p) + i, words[i]);
  T value;
  memcpy(&value, words, sizeof value);
  return value;
#else
  return wanted ? load_global(p) : T{};
#endif
}

// Loads a number of 4 or 8 bytes that this thread will overwrite.
template <class T>
SEWSNN_HD T load_own(const T* p) {
  SEWSNN_TRACE_LOAD(p, sizeof(T));
#if defined(__CUDA_ARCH__)
  return bit_cast_<T>(load_own_word(reinterpret_cast<const Word<int(sizeof(T))>*>(p)));
#else
  return *p;
#endif
}

// Loads a number of 4 or 8 bytes that another block of this kernel may have written, after arrive() (bn_finish.cuh).
template <class T>
SEWSNN_HD T load_others(const T* p) {
  SEWSNN_TRACE_LOAD(p, sizeof(T));
#if defined(__CUDA_ARCH__)
  return bit_cast_<T>(load_others_word(reinterpret_cast<const Word<int(sizeof(T))>*>(p)));
#else
  return *p;
#endif
}

template <class T>
SEWSNN_HD void store_global(T* p, const T& value) {
  SEWSNN_TRACE_STORE(p, sizeof(T));
#if defined(__CUDA_ARCH__)
  using W = Word<int(sizeof(T))>;
  W words[sizeof(T) / sizeof(W)];
  memcpy(words, &value, sizeof value);
  SEWSNN_UNROLL
  for (int i = 0; i < int(sizeof(T) / sizeof(W)); ++i) store_word(reinterpret_cast<W*>(p) + i, words[i]);
#else
  *p = value;
#endif
}

// N neighbouring numbers.
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

// Hides the numbers of the pack from the compiler. Where it needs a value that it has computed from them before, it
// computes the value again instead of keeping it in a register.
template <class T, int N>
SEWSNN_HD void forget([[maybe_unused]] Pack<T, N>& pack) {
#if defined(__CUDA_ARCH__)
  constexpr int kBytes = sizeof(pack);
  using Part = std::conditional_t<kBytes % 4 == 0, uint32_t, uint16_t>;
  Part parts[kBytes / sizeof(Part)];
  memcpy(parts, &pack, sizeof pack);
  SEWSNN_UNROLL
  for (int i = 0; i < int(kBytes / sizeof(Part)); ++i) {
    if constexpr (sizeof(Part) == 4) {
      asm("" : "+r"(parts[i]));
    } else {
      asm("" : "+h"(parts[i]));
    }
  }
  memcpy(&pack, parts, sizeof pack);
#endif
}

// The address of a thread's N columns in one of the [T, M] rows. move() adds to this address, because compilers would
// otherwise keep one address per row of a chunk, and there are too few registers for that. A cursor may point outside
// the rows if nothing is loaded or stored there.
template <class T, int N>
class Cursor {
 public:
  Cursor() = default;
  // If step is 0, a row holds kBroadcast equal numbers (core/params.h), and load() needs no special case.
  SEWSNN_HD Cursor(const Rows& rows, int64_t t, int64_t i)
      : at_(reinterpret_cast<uintptr_t>(static_cast<const T*>(rows.data) + i * rows.step)),
        row_bytes_(rows.row_stride * int64_t(sizeof(T))) {
    move(t);
  }
  SEWSNN_HD Cursor(void* out, int64_t M, int64_t t, int64_t i) : Cursor(Rows{out, M, 1}, t, i) {}

  SEWSNN_HD Pack<T, N> load() const { return load_global(reinterpret_cast<const Pack<T, N>*>(at_)); }
  SEWSNN_HD Pack<T, N> load_if(bool wanted) const {
    return load_global_if(wanted, reinterpret_cast<const Pack<T, N>*>(at_));
  }
  SEWSNN_HD void store(const Pack<T, N>& pack) const { store_global(reinterpret_cast<Pack<T, N>*>(at_), pack); }
  // The same bytes as words: the compiler would take a pack of 16-bit numbers apart and put it together again.
  template <class Words>
  SEWSNN_HD Words load_words() const {
    static_assert(sizeof(Words) == sizeof(T) * N, "words of one pack");
    return load_global(reinterpret_cast<const Words*>(at_));
  }
  template <class Words>
  SEWSNN_HD void store_words(const Words& words) const {
    static_assert(sizeof(Words) == sizeof(T) * N, "words of one pack");
    store_global(reinterpret_cast<Words*>(at_), words);
  }
  SEWSNN_HD Cursor moved(int64_t rows) const {
    Cursor other = *this;
    other.move(rows);
    return other;
  }
  SEWSNN_HD void move(int64_t rows) {
    at_ += uintptr_t(rows * row_bytes_);
#if defined(__CUDA_ARCH__)
    asm("" : "+l"(at_));
#endif
  }

 private:
  uintptr_t at_;
  int64_t row_bytes_;
};

SEWSNN_END
