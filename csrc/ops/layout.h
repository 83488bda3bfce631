// How the kernels see [T, ...] tensors: as T rows of M numbers, in the dense order of one time-step of x.
#pragma once

#include <algorithm>
#include <vector>

#include "core/params.h"
#include "ops/memory.h"

namespace sewsnn {

constexpr int64_t kMostSteps = (int64_t(1) << 31) - 1;

// Whether the dimensions from `first` on fill memory without gaps, in any order. No size may be 0.
inline bool is_dense(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, size_t first = 0) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (size_t d = first; d < sizes.size(); ++d)
    if (sizes[d] != 1) dims.emplace_back(strides[d], sizes[d]);
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

struct Layout {
  std::vector<int64_t> sizes, strides;  // of a dense result: T outermost, a time-step in the order of x
  int64_t T = 0, M = 1;
  bool x_in_place = false;  // x can be read without a copy

  Layout() = default;
  explicit Layout(const Tensor& x) {
    sizes.assign(x.sizes().begin(), x.sizes().end());
    strides.assign(x.strides().begin(), x.strides().end());
    T = sizes[0];
    M = count_of(sizes, 1);
    // A stride of 0 repeats a tensor over time at no cost, so T can be too large for the counters of the kernels.
    STD_TORCH_CHECK(T <= kMostSteps, "there can be ", kMostSteps, " time-steps at most, got ", T);
    times(T, M);
    x_in_place = M > 0 && is_dense(sizes, strides, 1);
    if (!x_in_place) {
      int64_t stride = 1;
      for (size_t d = sizes.size() - 1; d > 0; --d) {
        strides[d] = stride;
        stride = times(stride, std::max<int64_t>(sizes[d], 1));
      }
    }
    strides[0] = std::max<int64_t>(M, 1);
  }

  // Shape and strides without the time dimension.
  std::vector<int64_t> step_sizes() const { return {sizes.begin() + 1, sizes.end()}; }
  std::vector<int64_t> step_strides() const { return {strides.begin() + 1, strides.end()}; }
};

// A tensor that the kernels can read, and its description. `holder` keeps the tensor, or its dense copy, alive.
struct Operand {
  Tensor holder;
  Rows rows;
};

// `t` is [T, ...] if `time`, else one time-step [...]. A stride of 0 over time is read without a copy, and so is a
// stride of 0 over all neurons if `broadcast`. A tensor in another order than the layout's is copied once.
inline Operand as_operand(const Tensor& t, const Layout& layout, bool time, bool broadcast) {
  const size_t skip = time ? 1 : 0;
  bool same = true, scalar = true;
  for (size_t d = 1; d < layout.sizes.size(); ++d) {
    if (layout.sizes[d] == 1) continue;
    const int64_t stride = t.stride(int64_t(d - 1 + skip));
    same = same && stride == layout.strides[d];
    scalar = scalar && stride == 0;
  }
  if (!same && !(scalar && broadcast)) {
    Tensor dense = time ? empty_strided(layout.sizes, layout.strides, t.scalar_type(), t)
                        : empty_strided(layout.step_sizes(), layout.step_strides(), t.scalar_type(), t);
    address(t);
    torch::stable::copy_(dense, t);
    return {dense, {dense.const_data_ptr(), layout.M, 1}};
  }
  return {t, {address(t), time ? t.stride(0) : 0, same ? 1 : 0}};
}

}  // namespace sewsnn
