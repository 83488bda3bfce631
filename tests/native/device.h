// A device made of fibers, and the memory its kernels may touch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace host_device {

// Memory a kernel was given. Every access must lie in one of these, aligned to its size; reads only where there is
// something to read; and each byte is written once.
struct Buffer {
  std::string name;
  uintptr_t begin = 0;
  size_t bytes = 0;
  bool filled = false;           // by the caller; else only what kernels have written may be read
  bool updated = false;          // filled, and to be overwritten all the same
  std::vector<uint8_t> written;  // bytes kernels have written: how often
  // Accesses by their size in bytes.
  std::map<size_t, uint64_t> loads, stores;
};

struct Launch {
  std::string kernel;  // as the linker names it
  dim3 grid, block;
};

struct Device {
  std::vector<Buffer> buffers;
  std::vector<Launch> launches;
  // In which order threads and blocks take turns: 0 ascending, 1 descending, else shuffled with this seed.
  unsigned schedule = 0;

  void add(std::string name, const void* begin, size_t bytes, bool filled);
};

Device& device();

}  // namespace host_device
