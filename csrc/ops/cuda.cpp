#include "ops/cuda.h"

// Weak: a CPU-only torch does not have it, and the library must load there all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace sewsnn {

cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "sewsnn: ", what, " could not be launched: ", cudaGetErrorString(error));
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
