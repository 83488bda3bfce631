#include "ops/memory.h"

#include <cstdlib>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Weak: torch has it from 2.11 on, and the library must load in 2.10 all the same.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* ctx), void* ctx);

namespace sewsnn {
namespace {

constexpr size_t kPage = size_t(2) << 20;

// In pages of 2 MiB instead of 4 KiB a fresh block costs 512 times fewer page faults. Only a hint.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

struct Block {
  void* data;
  size_t bytes;
};

class Pool {
 public:
  Pool() {
    const char* const text = std::getenv("SEWSNN_CPU_KEEP_MB");
    if (!text) return;
    char* end = nullptr;
    const long long megabytes = std::strtoll(text, &end, 10);
    STD_TORCH_CHECK(end != text && *end == 0 && megabytes >= 0 && megabytes < (int64_t(1) << 40),
                    "SEWSNN_CPU_KEEP_MB must be a number of megabytes, 0 or more, got '", text, "'");
    most_ = size_t(megabytes) << 20;
  }

  // The block freed last of those that fit and are not much too large, or a new one.
  Block take(size_t bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = free_.size(); i-- > 0;) {
        const Block block = free_[i];
        if (block.bytes < bytes || block.bytes > bytes + bytes / 4) continue;
        free_.erase(free_.begin() + ptrdiff_t(i));
        kept_ -= block.bytes;
        return block;
      }
    }
    void* const data = std::aligned_alloc(kPage, bytes);
    if (!data) throw std::bad_alloc();
    prefer_huge_pages(data, bytes);
    return {data, bytes};
  }

  // Keeps the block; those freed longest ago go back to the system when there are too many.
  void give(Block block) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      free_.push_back(block);
    } catch (const std::bad_alloc&) {
      return std::free(block.data);
    }
    kept_ += block.bytes;
    size_t gone = 0;
    for (; kept_ > most_; ++gone) {
      kept_ -= free_[gone].bytes;
      std::free(free_[gone].data);
    }
    free_.erase(free_.begin(), free_.begin() + ptrdiff_t(gone));
  }

 private:
  std::mutex mutex_;
  std::vector<Block> free_;  // in the order they were freed
  size_t kept_ = 0, most_ = size_t(1) << 30;
};

// Never destroyed: tensors may die after everything static has.
Pool& pool() {
  static Pool& instance = *new Pool;
  return instance;
}

constexpr int64_t kLarge = int64_t(4) << 20;  // bytes; smaller results are left to torch's allocator

int64_t bytes_of(const std::vector<int64_t>& sizes, ScalarType dtype) {
  int64_t bytes = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : dtype == ScalarType::Byte ? 1 : 2;
  for (const int64_t size : sizes) bytes *= size;
  return bytes;
}

}  // namespace

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                     const Tensor& like) {
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  const auto dims = int64_t(sizes.size());
  const int64_t bytes = bytes_of(sizes, dtype);
  const bool large = !like.is_cuda() && bytes >= kLarge;
  AtenTensorHandle handle = nullptr;
  if (large && torch_from_blob) {
    const Block block = pool().take(size_t(bytes));
    const auto give_back = [](void* data, void* size) { pool().give({data, reinterpret_cast<size_t>(size)}); };
    const AOTITorchError error = torch_from_blob(
        block.data, dims, sizes.data(), strides.data(), 0, type, aoti_torch_device_type_cpu(), like.get_device_index(),
        &handle, aoti_torch_layout_strided(), nullptr, 0, give_back, reinterpret_cast<void*>(block.bytes));
    if (error) pool().give(block);
    STABLE_TORCH_ERROR_CODE_CHECK(error);
    return Tensor(handle);
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes.data(), strides.data(), type,
      like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(), like.get_device_index(), &handle));
  const Tensor tensor(handle);
  if (large) prefer_huge_pages(tensor.mutable_data_ptr(), size_t(bytes));
  return tensor;
}

}  // namespace sewsnn
