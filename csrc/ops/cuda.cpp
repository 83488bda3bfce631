#include "ops/cuda.h"

#include <sstream>
#include <string>

#include "kernels/cuda_kernels.h"
#include "ops/text.h"

// A weak symbol: a torch without CUDA does not have it, and the library must load there as well.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace sewsnn {
namespace {

std::string launch_error(const char* what, cudaError_t error) {
  std::ostringstream text;
  text << "sewsnn: " << what << " could not be launched: " << cudaGetErrorString(error)
       << ". The error may belong to a kernel that was launched earlier, by sewsnn or by any other library: run with "
          "CUDA_LAUNCH_BLOCKING=1, and the call that it belongs to raises it";
  return text.str();
}

// "12.8"
std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// Whether every later call will fail with the same error. (This is false for errors of kernels that ran, missing memory
// and the like.)
bool is_lasting(cudaError_t error) {
  switch (error) {
    case cudaErrorInitializationError:
    case cudaErrorStubLibrary:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidKernelImage:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidPtx:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilationDisabled:
    case cudaErrorSymbolNotFound:
    case cudaErrorSharedObjectInitFailed:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice: return true;
    default: return false;
  }
}

// The reason why the kernels cannot run on this device; empty: they can, or the reason is not known.
std::string problem_of(int device) {
  int driver = 0, runtime = 0, before = -1;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "there is no CUDA driver";
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess && device != before) error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cuda_find_code();
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (before >= 0 && device != before) cudaSetDevice(before);
  cudaGetLastError();  // clears the error, so that no other library reports it
  if (!is_lasting(error)) return "";
  std::ostringstream text;
  text << cudaGetErrorString(error);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorUnsupportedPtxVersion) {
    text << " (the driver is for CUDA " << version(driver) << ", the compiled library for CUDA " << version(runtime)
         << "): install a newer driver, or build sewsnn with that CUDA or an older one";
  } else if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    text << " (the compiled library has no code for compute capability " << major << "." << minor
         << "): build sewsnn with TORCH_CUDA_ARCH_LIST=" << major << "." << minor;
  }
  return text.str();
}

int32_t device_of(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda(), "all tensors must be on the device of the first, the CPU; one is on a GPU");
  return x.get_device_index();
}

cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

Cuda::Cuda(const Tensor& x, const char* op) : op_(op), guard_(device_of(x)), stream(current_stream(x)) {}

void Cuda::check(cudaError_t error) const {
  if (error != cudaSuccess) throw std::runtime_error(launch_error(op_, error));
}

void widen(Operand& gradient, int64_t rows) {
  if (!gradient.rows.data || gradient.rows.step != 0 || gradient.wide) return;
  const int64_t stride = gradient.rows.row_stride;
  if (stride == 0) rows = 1;
  const Tensor view = view_of(*gradient.holder, {rows, kBroadcast}, {stride, 0});
  Tensor dense = empty_strided({rows, kBroadcast}, {kBroadcast, 1}, view.scalar_type(), view);
  torch::stable::copy_(dense, view);
  gradient = {dense, {dense.const_data_ptr(), rows > 1 ? kBroadcast : 0, 0}, true};
}

}  // namespace sewsnn

extern "C" {

// Returns 0 if the kernels can run on this device. Otherwise returns 1 and writes the reason to `text` (of `size`
// bytes). sewsnn/ops/load.py calls it once for each device that has tensors.
__attribute__((visibility("default"))) int sewsnn_cuda_problem(int device, char* text, int size) {
  return sewsnn::tell(text, size, 0, [&](std::string& said) {
    said = sewsnn::problem_of(device);
    return said.empty() ? 0 : 1;
  });
}

// Writes the message of Cuda::check to `text`.
__attribute__((visibility("default"))) void sewsnn_launch_error(const char* what, int error, char* text, int size) {
  sewsnn::tell(text, size, 0, [&](std::string& said) {
    said = sewsnn::launch_error(what, cudaError_t(error));
    return 0;
  });
}
}
