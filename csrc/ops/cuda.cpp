#include "ops/cuda.h"

#include <sstream>
#include <string>

#include "kernels/cuda_kernels.h"

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

}  // namespace

cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

torch::stable::accelerator::DeviceGuard guard_of(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda(), "all tensors must be on the device of the first, the CPU; one is on a GPU");
  return torch::stable::accelerator::DeviceGuard(x.get_device_index());
}

void check_launch(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(launch_error(what, error));
}

Operand broadcast(const Operand& numbers, int64_t rows) {
  if (numbers.rows.row_stride == 0) rows = 1;
  const int64_t sizes[] = {rows, kBroadcast}, strides[] = {numbers.rows.row_stride, 0};
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(numbers.holder.get(), 2, sizes, strides, 0, &handle));
  const Tensor view(handle);
  Tensor dense = empty_strided({rows, kBroadcast}, {kBroadcast, 1}, view.scalar_type(), view);
  torch::stable::copy_(dense, view);
  return {dense, {dense.const_data_ptr(), rows > 1 ? kBroadcast : 0, 0}};
}

}  // namespace sewsnn

extern "C" {

// Returns 0 if the kernels can run on this device. Otherwise returns 1 and writes the reason to `text` (of `size`
// bytes). sewsnn/ops/load.py calls it once for each device that has tensors.
__attribute__((visibility("default"))) int sewsnn_cuda_problem(int device, char* text, int size) {
  try {
    const std::string problem = sewsnn::problem_of(device);
    if (size > 0) text[problem.copy(text, size_t(size - 1))] = 0;
    return !problem.empty();
  } catch (...) {  // no memory is left for the text
    if (size > 0) text[0] = 0;
    return 0;
  }
}

// Writes the message of check_launch to `text`.
__attribute__((visibility("default"))) void sewsnn_launch_error(const char* what, int error, char* text, int size) {
  try {
    const std::string said = sewsnn::launch_error(what, cudaError_t(error));
    if (size > 0) text[said.copy(text, size_t(size - 1))] = 0;
  } catch (...) {
    if (size > 0) text[0] = 0;
  }
}
}
