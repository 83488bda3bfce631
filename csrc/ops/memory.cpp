#include "ops/memory.h"

#include <cstdlib>
#include <cstring>
#include <locale>
#include <mutex>
#include <new>
#include <sstream>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// A weak symbol: torch has it since 2.11, and the library must also load with 2.10.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* ctx), void* ctx);
// Since 2.13: the text of the last error of a C function.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace sewsnn {
namespace {

constexpr size_t kPage = size_t(2) << 20;

// With pages of 2 MiB instead of 4 KiB a fresh block causes 512 times fewer page faults. This is only a hint.
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

constexpr size_t kKept = size_t(1) << 30;  // default number of bytes, without SEWSNN_CPU_KEEP_MB

// The number of bytes to keep, and what is wrong with SEWSNN_CPU_KEEP_MB (empty: nothing).
std::pair<size_t, std::string> read_keep_bytes() {
  const char* const text = std::getenv("SEWSNN_CPU_KEEP_MB");
  if (!text || !*text) return {kKept, ""};
  std::istringstream in(text);
  in.imbue(std::locale::classic());
  double megabytes = 0;
  if (!(in >> megabytes) || in.peek() != std::istringstream::traits_type::eof() || !(megabytes >= 0))
    return {kKept, "SEWSNN_CPU_KEEP_MB must be a number of megabytes, 0 or more, got '" +
                       std::string(text).substr(0, 60) + "'"};
  constexpr double most = double(int64_t(1) << 40);
  return {size_t((megabytes < most ? megabytes : most) * (1 << 20)), ""};
}

// Reads the variable once, when the package is imported.
const std::pair<size_t, std::string>& keep_bytes() {
  static const std::pair<size_t, std::string> read = read_keep_bytes();
  return read;
}

[[noreturn]] void no_memory(int64_t bytes, const Tensor& like, const char* why = nullptr) {
  std::ostringstream text;
  if (like.is_cuda()) text << "CUDA out of memory: ";
  text << "sewsnn can't allocate memory: it tried to allocate " << bytes << " bytes on ";
  if (like.is_cuda()) text << "cuda:" << like.get_device_index();
  else text << "the CPU";
  if (why) text << " (" << std::string(why, std::strcspn(why, "\n")) << ")";
  throw std::runtime_error(text.str());
}

class Pool {
 public:
  Pool() : most_(keep_bytes().first) {}

  // Returns the block that was freed last among those that fit and are at most 1/4 too large, or else a new one. `data`
  // is null if memory is missing.
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
    void* data = std::aligned_alloc(kPage, bytes);
    if (!data) {
      shrink(0);  // the kept blocks may be the memory that is missing
      data = std::aligned_alloc(kPage, bytes);
    }
    if (data) prefer_huge_pages(data, bytes);
    return {data, bytes};
  }

  // Keeps the block. If more than `most_` bytes are kept, the blocks that were freed first go back to the system.
  void give(Block block) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      free_.push_back(block);
    } catch (const std::bad_alloc&) {
      return std::free(block.data);
    }
    kept_ += block.bytes;
    drop(most_);
  }

 private:
  // Gives memory back to the system until at most `most` bytes are kept. drop() needs the mutex to be held.
  void shrink(size_t most) {
    const std::lock_guard<std::mutex> lock(mutex_);
    drop(most);
  }
  void drop(size_t most) noexcept {
    size_t gone = 0;
    for (; kept_ > most; ++gone) {
      kept_ -= free_[gone].bytes;
      std::free(free_[gone].data);
    }
    free_.erase(free_.begin(), free_.begin() + ptrdiff_t(gone));
  }

  std::mutex mutex_;
  std::vector<Block> free_;  // in the order in which they were freed
  size_t kept_ = 0;
  const size_t most_;
};

// This object is never destroyed, because tensors may live longer than static objects.
Pool& pool() {
  static Pool& instance = *new Pool;
  return instance;
}

constexpr int64_t kLarge = int64_t(4) << 20;  // bytes; torch's allocator provides smaller results

int64_t item_size(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : dtype == ScalarType::Byte ? 1 : 2;
}

}  // namespace

int64_t count_of(const std::vector<int64_t>& sizes, size_t first) {
  for (size_t d = first; d < sizes.size(); ++d)
    if (sizes[d] == 0) return 0;
  int64_t count = 1;
  for (size_t d = first; d < sizes.size(); ++d) count = times(count, sizes[d]);
  return count;
}

const void* address(const Tensor& t) {
  const void* const data = t.const_data_ptr();
  STD_TORCH_CHECK(data || t.numel() == 0, "a tensor has no memory: its storage was freed");
  return data;
}

std::string keep_problem() { return keep_bytes().second; }

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype,
                     const Tensor& like) {
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  const auto dims = int64_t(sizes.size());
  const int64_t bytes = times(count_of(sizes), item_size(dtype));
  const bool large = !like.is_cuda() && bytes >= kLarge;
  AtenTensorHandle handle = nullptr;
  if (large && torch_from_blob) {
    const Block block = pool().take(size_t(bytes));
    if (!block.data) no_memory(bytes, like);
    const auto give_back = [](void* data, void* size) { pool().give({data, reinterpret_cast<size_t>(size)}); };
    const AOTITorchError error = torch_from_blob(
        block.data, dims, sizes.data(), strides.data(), 0, type, aoti_torch_device_type_cpu(), like.get_device_index(),
        &handle, aoti_torch_layout_strided(), nullptr, 0, give_back, reinterpret_cast<void*>(block.bytes));
    if (error) pool().give(block);
    STABLE_TORCH_ERROR_CODE_CHECK(error);
    return Tensor(handle);
  }
  const int32_t device = like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  if (aoti_torch_empty_strided(dims, sizes.data(), strides.data(), type, device, like.get_device_index(), &handle))
    no_memory(bytes, like,
              torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : nullptr);
  const Tensor tensor(handle);
  if (large) prefer_huge_pages(tensor.mutable_data_ptr(), size_t(bytes));
  return tensor;
}

}  // namespace sewsnn
