// A device that runs threads as fibers, and the memory that its kernels may access.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace host_device {

// Memory that a kernel was given. Every access must be inside one buffer and aligned to its size. Reads need memory
// that has been written, and each byte is written once.
struct Buffer {
  std::string name;
  uintptr_t begin = 0;
  size_t bytes = 0;
  bool filled = false;   // the caller filled it; otherwise kernels may read only bytes that they have written
  bool updated = false;  // filled, but kernels may overwrite it
  // Whether the kernel that runs has loaded from here through the cache that stores bypass, and whether it has stored.
  bool cached = false, stored = false;
  std::vector<uint8_t> written;  // for each byte, how often kernels have written it
  // Accesses by their size in bytes.
  std::map<size_t, uint64_t> loads, stores;
};

struct Launch {
  std::string kernel;  // the mangled name
  dim3 grid, block;
};

// Another body for a kernel than the one that the C++ compiler made.
struct Body {
  virtual ~Body() = default;
  virtual void begin_block() = 0;  // before the threads of each block; shared memory has no content then
  virtual void thread() = 0;
};

struct Device {
  std::vector<Buffer> buffers;
  std::vector<Launch> launches;
  // The order in which threads and blocks run: 0 ascending, 1 descending, else shuffled with this seed.
  unsigned schedule = 0;
  // Runs only every n-th block. The results are then incomplete, and it is no error to read what was never written.
  unsigned every = 1;
  // Returns the body to run for a launch, or null for the one that the C++ compiler made.
  std::function<Body*(const std::string& kernel, std::initializer_list<Argument>)> other_body;

  void add(std::string name, const void* begin, size_t bytes, bool filled);
};

Device& device();

// Ends the launch with an exception that names kernel, block and thread.
[[noreturn]] void fail(const std::string& what);

// Fails if the kernel was allowed to begin before earlier ones have ended, and this thread has not waited for them.
void check_begun();

// buffers.cpp and tests/device implement what follows, together with on_load, on_store and on_atomic.

// Called before a kernel runs. What it returns is kept until the kernel has ended.
std::shared_ptr<void> on_launch(cudaStream_t stream, const std::string& kernel);
// A load of memory that the kernel never writes (ld.global.nc).
void on_cached_load(const void*, size_t);

}  // namespace host_device
