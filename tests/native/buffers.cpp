// The memory of the kernels that tests/native calls: named buffers. Every access is checked and counted.
#include <cuda_runtime.h>

#include <algorithm>
#include <sstream>

#include "device.h"

namespace host_device {
namespace {

Buffer& buffer_at(uintptr_t p, size_t bytes, const char* what) {
  check_begun();
  for (Buffer& b : device().buffers) {
    if (p < b.begin || p >= b.begin + b.bytes) continue;
    if (p + bytes <= b.begin + b.bytes) return b;
  }
  std::ostringstream text;
  text << what << " of " << bytes << " bytes outside all buffers";
  for (const Buffer& b : device().buffers)
    text << "; " << b.name << " has " << b.bytes << " bytes, this is at " << intptr_t(p - b.begin);
  fail(text.str());
}

void check_alignment(const Buffer& b, uintptr_t p, size_t bytes) {
  const size_t access = std::min<size_t>(bytes, 16);  // wider packs count as several accesses
  if (p % access)
    fail("an access of " + std::to_string(access) + " bytes to " + b.name + " that is not aligned to them");
}

Buffer& loaded(const void* p, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  Buffer& b = buffer_at(address, bytes, "a read");
  check_alignment(b, address, bytes);
  ++b.loads[bytes];
  if (b.filled || device().every > 1) return b;
  const auto first = b.written.begin() + ptrdiff_t(address - b.begin);
  if (std::find(first, first + ptrdiff_t(bytes), 0) != first + ptrdiff_t(bytes))
    fail("a read of " + b.name + " where nothing has been written");
  return b;
}

void store_to(Buffer& b) {
  if (b.filled && !b.updated) fail("a write to " + b.name + ", which is to be read only");
  b.stored = true;
  if (b.cached) fail("a write to " + b.name + ", which this kernel has read as constant memory");
}

}  // namespace

void Device::add(std::string name, const void* begin, size_t bytes, bool filled) {
  if (!begin || !bytes) return;
  Buffer b;
  b.name = std::move(name);
  b.begin = reinterpret_cast<uintptr_t>(begin);
  b.bytes = bytes;
  b.filled = filled;
  b.written.assign(filled ? 0 : bytes, 0);
  buffers.push_back(std::move(b));
}

void on_load(const void* p, size_t bytes) { loaded(p, bytes); }

void on_cached_load(const void* p, size_t bytes) {
  Buffer& b = loaded(p, bytes);
  b.cached = true;
  if (b.stored) fail("a read of " + b.name + " as constant memory after this kernel has written to it");
}

void on_store(const void* p, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  Buffer& b = buffer_at(address, bytes, "a write");
  check_alignment(b, address, bytes);
  store_to(b);
  ++b.stores[bytes];
  if (b.updated) b.written.resize(b.bytes);
  for (size_t i = address - b.begin; i < address - b.begin + bytes; ++i)
    if (b.written[i]++) fail("a second write to byte " + std::to_string(i) + " of " + b.name);
}

// Atomic operations may follow each other at one address. They need memory that has been written.
void on_atomic(const void* p, size_t bytes) {
  Buffer& b = loaded(p, bytes);
  store_to(b);
  ++b.stores[bytes];
}

std::shared_ptr<void> on_launch(cudaStream_t, const std::string&) {
  for (Buffer& b : device().buffers) b.cached = b.stored = false;
  return nullptr;
}

}  // namespace host_device

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
