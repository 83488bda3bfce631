// The few things of torch's stable ABI the ops use.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

namespace sewsnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                            const Tensor& like) {
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(), type,
      like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(), like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor empty(int64_t n, ScalarType dtype, const Tensor& like) { return empty_strided({n}, {1}, dtype, like); }

}  // namespace sewsnn
