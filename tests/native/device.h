// A device that runs threads as fibers, and the memory that its kernels may access.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace host_device {

// Memory that a kernel was given. Every access must be inside one buffer and aligned to its size. Reads need memory
// that has been written, and each byte is written once.
struct Buffer {
  std::string name;
  uintptr_t begin = 0;
  size_t bytes = 0;
  bool filled = false;           // the caller filled it; otherwise kernels may read only bytes that they have written
  bool updated = false;          // filled, but kernels may overwrite it
  std::vector<uint8_t> written;  // for each byte, how often kernels have written it
  // Accesses by their size in bytes.
  std::map<size_t, uint64_t> loads, stores;
};

struct Launch {
  std::string kernel;  // the mangled name
  dim3 grid, block;
};

struct Device {
  std::vector<Buffer> buffers;
  std::vector<Launch> launches;
  // The order in which threads and blocks run: 0 ascending, 1 descending, else shuffled with this seed.
  unsigned schedule = 0;

  void add(std::string name, const void* begin, size_t bytes, bool filled);
};

Device& device();

}  // namespace host_device
