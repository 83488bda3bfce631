// Host/device markers, and the namespace of every kernel.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SEWSNN_HD __host__ __device__ __forceinline__
#define SEWSNN_UNROLL _Pragma("unroll")
#define SEWSNN_ROLLED _Pragma("unroll 1")
#else
#define SEWSNN_HD inline __attribute__((always_inline))
#define SEWSNN_UNROLL
#define SEWSNN_ROLLED
#endif

// The CPU kernels are compiled once per instruction set. Each copy has its own inline namespace, so that the linker
// never uses, for example, the AVX-512 copy of an inline function in the generic kernels.
#ifndef SEWSNN_ISA
#define SEWSNN_ISA generic
#endif
#ifndef SEWSNN_NAME
#define SEWSNN_NAME Generic
#endif
#define SEWSNN_JOIN_(a, b, c) a##b##c
#define SEWSNN_JOIN(a, b, c) SEWSNN_JOIN_(a, b, c)
// The names that a copy exports: kGenericKernels, kAvx2Kernels ...
#define SEWSNN_NAMED(what) SEWSNN_JOIN(k, SEWSNN_NAME, what)
#define SEWSNN_BEGIN \
  namespace sewsnn { \
  inline namespace SEWSNN_ISA {
#define SEWSNN_END \
  }                \
  }
