// sewsnn::unpack_spikes: converts the spikes that bn_neuron_forward packed (8 per byte, in memory order) to numbers.
#include "ops/spikes.h"

#include <cstring>

#include "core/dispatch.h"
#include "ops/parallel.h"

namespace sewsnn {
namespace {

Tensor checked_out(const Tensor& bits, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                   ScalarType dtype) {
  STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte && bits.is_contiguous(), "bits must be contiguous bytes");
  address(bits);
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16,
                  "dtype must be float32, float16, bfloat16 or float64");
  STD_TORCH_CHECK(sizes.size() == strides.size(), "there must be a stride for each size");
  for (size_t d = 0; d < sizes.size(); ++d)
    STD_TORCH_CHECK(sizes[d] >= 0 && strides[d] >= 0, "sizes and strides must not be negative");
  const int64_t numel = count_of(sizes);
  STD_TORCH_CHECK(numel == times(8, bits.numel()) && (numel == 0 || is_dense(sizes, strides)),
                  "bits must be those of a dense tensor of this size");
  return empty_strided(sizes, strides, dtype, bits);
}

// Converts the spikes of all bytes to numbers.
template <class Storage>
struct Table {
  Storage spikes[256][8];
  Table() {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0; bit < 8; ++bit) spikes[byte][bit] = store_<Storage>(State<Storage>(byte >> bit & 1));
  }
};

}  // namespace

UnpackCall::UnpackCall(const Tensor& bits_in, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                       ScalarType dtype)
    : bits(bits_in), bytes(bits_in.numel()), out(checked_out(bits_in, sizes, strides, dtype)) {}

template <>
void run(const Cpu&, UnpackCall& call) {
  with_storage(dtype_of(call.out), [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    static const Table<Storage> table;
    const auto* const bits = static_cast<const uint8_t*>(call.bits.const_data_ptr());
    auto* const out = static_cast<Storage*>(call.out.mutable_data_ptr());
    parallel_for(0, call.bytes, 1 << 14, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) std::memcpy(out + 8 * i, table.spikes[bits[i]], sizeof table.spikes[0]);
    });
  });
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_FRAGMENT(sewsnn, m) {
  m.def("unpack_spikes(Tensor bits, int[] sizes, int[] strides, ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CPU, m) {
  m.impl("unpack_spikes", &sewsnn::boxed<&sewsnn::unpack_spikes<sewsnn::Cpu>>);
}
