// The part of CUDA's runtime that the kernels use, for the host. Blocks run one after the other. The threads of a block
// are fibers, which are switched where they wait for each other (device.cpp). The shim has no function that copies
// memory or waits for a device, so code that does this does not compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Only one block runs at a time, so its shared memory can be static. It is the only thread-local data of its library,
// so device.cpp finds it in one place and fills it with garbage before each block.
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
#define SEWSNN_VECTOR(T, name)                       \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; }; \
  struct alignas(4 * sizeof(T)) name##4 { T x, y, z, w; };
SEWSNN_VECTOR(float, float)
SEWSNN_VECTOR(int, int)
SEWSNN_VECTOR(unsigned, uint)
#undef SEWSNN_VECTOR
struct alignas(16) double2 {
  double x, y;
};

constexpr int warpSize = 32;
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

typedef struct CUstream_st* cudaStream_t;

namespace host_device {

// The place where a thread waits. All threads that must meet have to wait at the same place.
enum class Meeting { Block, Shuffle, Vote, Warp };

void meet_block();
// Gives `value` to the other lanes of the mask and waits for their values; `slots`[i] is the value of lane i.
struct Slot {
  unsigned char bytes[16];
};
const Slot* meet_warp(Meeting, unsigned mask, const void* value, size_t bytes);
int lane();

void on_load(const void*, size_t);
void on_store(const void*, size_t);
void on_atomic(const void*, size_t);
// The kernel waits for earlier ones. If it was allowed to begin before they end, this must come before every access.
void on_begin();

// One argument of a launch.
struct Argument {
  const void* value;
  size_t bytes;
};

struct LaunchSettings {
  size_t dynamic_shared;
  cudaStream_t stream;
  bool early;  // may begin before earlier kernels have ended
  std::initializer_list<Argument> arguments;
};
// Runs `thread` in every thread of the grid, or another body of this kernel (device.h), which reads the arguments.
void run(const void* kernel, dim3 grid, dim3 block, const LaunchSettings&, const std::function<void()>& thread);

template <class T>
T from_lane(Meeting what, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= sizeof(Slot) && std::is_trivially_copyable_v<T>, "what a shuffle can carry");
  const Slot* const slots = meet_warp(what, mask, &value, sizeof value);
  T out;
  memcpy(&out, slots[source].bytes, sizeof out);
  return out;
}

// The lane from which a shuffle reads: the own lane if the source is outside the segment of `width` lanes.
inline int within(int source, int width) {
  const int first = lane() / width * width;
  return source < first || source >= first + width ? lane() : source;
}

}  // namespace host_device

#define SEWSNN_TRACE_LOAD(p, bytes) ::host_device::on_load(p, bytes)
#define SEWSNN_TRACE_STORE(p, bytes) ::host_device::on_store(p, bytes)
#define SEWSNN_TRACE_BEGIN() ::host_device::on_begin()

inline void __syncthreads() { host_device::meet_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  host_device::meet_warp(host_device::Meeting::Warp, mask, nullptr, 0);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int first = host_device::lane() / width * width;
  return host_device::from_lane(host_device::Meeting::Shuffle, mask, value, first + (source % width + width) % width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int source = host_device::within(host_device::lane() - int(delta), width);
  return host_device::from_lane(host_device::Meeting::Shuffle, mask, value, source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int source = host_device::within(host_device::lane() + int(delta), width);
  return host_device::from_lane(host_device::Meeting::Shuffle, mask, value, source);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  const int source = host_device::within(host_device::lane() ^ bits, width);
  return host_device::from_lane(host_device::Meeting::Shuffle, mask, value, source);
}
unsigned __ballot_sync(unsigned mask, int predicate);
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
// Blocks run one after the other, and threads switch only where they wait: every operation is atomic.
inline unsigned atomicInc(unsigned* p, unsigned most) {
  host_device::on_atomic(p, sizeof *p);
  const unsigned before = *p;
  *p = before >= most ? 0 : before + 1;
  return before;
}
inline void __threadfence() {}
inline int __popc(unsigned x) { return __builtin_popcount(x); }

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInitializationError = 3,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorStubLibrary = 34,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidKernelImage = 200,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorInvalidPtx = 218,
  cudaErrorJitCompilerNotFound = 221,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorJitCompilationDisabled = 223,
  cudaErrorSharedObjectInitFailed = 303,
  cudaErrorSymbolNotFound = 500,
  cudaErrorSystemNotReady = 802,
  cudaErrorSystemDriverMismatch = 803,
  cudaErrorCompatNotSupportedOnDevice = 804,
};
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "another error";
  }
}
// The device is one of compute capability 9.0.
struct cudaFuncAttributes {
  int ptxVersion;
};
template <class... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, void (*)(P...)) {
  return found->ptxVersion = 90, cudaSuccess;
}
cudaError_t cudaGetDevice(int* device);
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  return *value = what == cudaDevAttrComputeCapabilityMajor ? 9 : 0, cudaSuccess;
}
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

template <class... P, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), Given&&... given) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  // The limits of every GPU the library is built for.
  if (grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535 ||
      threads == 0 || threads > 1024 || config->dynamicSmemBytes > 48 * 1024)
    return cudaErrorInvalidConfiguration;
  // The arguments are copied, as in a launch.
  [&](P... arguments) {
    host_device::run(
        reinterpret_cast<const void*>(kernel), grid, block,
        {config->dynamicSmemBytes, config->stream, config->numAttrs != 0, {{&arguments, sizeof arguments}...}},
        [&] { kernel(arguments...); });
  }(std::forward<Given>(given)...);
  return cudaSuccess;
}
