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

// Element i of a time-step [N, C, ...] belongs to channel (i / inner) % count. The memory order is dense, so the stride
// of the channels is enough to find the channel of an element. Without channels there is one.
inline Channels channels_of(const Layout& layout) {
  const int64_t count = layout.sizes.size() > 2 ? layout.sizes[2] : 1;
  if (count == 1) return {1, std::max<int64_t>(layout.M, 1)};
  return {count, layout.strides[2]};
}

// Strides of a dense tensor [..., C, H, W] with its last three dimensions contiguous or channels_last.
inline std::vector<int64_t> image_strides(const std::vector<int64_t>& sizes, bool channels_last) {
  std::vector<int64_t> strides(sizes.size());
  const size_t n = sizes.size(), c = n - 3, h = n - 2, w = n - 1;
  int64_t stride = 1;
  const auto put = [&](size_t d) {
    strides[d] = stride;
    stride = times(stride, std::max<int64_t>(sizes[d], 1));
  };
  if (channels_last) put(c), put(w), put(h);
  else put(w), put(h), put(c);
  for (size_t d = c; d-- > 0;) put(d);
  return strides;
}

inline bool has_strides(const Tensor& t, const std::vector<int64_t>& strides) {
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) != strides[size_t(d)]) return false;
  return true;
}

// Another view of the memory of t; `offset` counts from its first element.
inline Tensor view_of(const Tensor& t, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                      int64_t offset = 0) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), int64_t(sizes.size()), sizes.data(), strides.data(), offset, &handle));
  return Tensor(handle);
}

// t[i] of the first dimension. Like torch's unsafe_split, it does not say that it shares the memory.
inline Tensor slice_of(const Tensor& t, int64_t i) {
  return view_of(t, {t.sizes().begin() + 1, t.sizes().end()}, {t.strides().begin() + 1, t.strides().end()},
                 i * t.stride(0));
}

// A tensor that the kernels can read, and its description. `holder` keeps the tensor, or its dense copy, alive.
struct Operand {
  MaybeTensor holder;
  Rows rows;
  bool wide = false;  // a step of 0, and rows of kBroadcast equal numbers
};

// `t` is [rows, ...], or one time-step [...] if rows is 0. A stride of 0 over the rows is read without a copy, and so
// is a stride of 0 over all neurons if `broadcast`. A tensor in another order than the layout's is copied once.
inline Operand as_operand(const Tensor& t, const Layout& layout, int64_t rows, bool broadcast) {
  const size_t skip = rows ? 1 : 0;
  bool same = true, scalar = true;
  for (size_t d = 1; d < layout.sizes.size(); ++d) {
    if (layout.sizes[d] == 1) continue;
    const int64_t stride = t.stride(int64_t(d - 1 + skip));
    same = same && stride == layout.strides[d];
    scalar = scalar && stride == 0;
  }
  if (same || (scalar && broadcast)) return {t, {address(t), rows ? t.stride(0) : 0, same ? 1 : 0}};
  std::vector<int64_t> sizes = layout.step_sizes(), strides = layout.step_strides();
  if (rows) sizes.insert(sizes.begin(), rows), strides.insert(strides.begin(), layout.strides[0]);
  Tensor dense = empty_strided(sizes, strides, t.scalar_type(), t);
  address(t);
  torch::stable::copy_(dense, t);
  return {dense, {dense.const_data_ptr(), layout.M, 1}};
}

// Returns t itself, or a copy with these strides.
inline Operand with_strides(const Tensor& t, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  address(t);
  if (has_strides(t, strides)) return {t, {t.const_data_ptr(), 0, 1}};
  Tensor copy = empty_strided(sizes, strides, t.scalar_type(), t);
  torch::stable::copy_(copy, t);
  return {copy, {copy.const_data_ptr(), 0, 1}};
}

}  // namespace sewsnn
