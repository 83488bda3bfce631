// Connects the kernels, which run as fibers (tests/native/device.cpp), with the memory of the pretended device.
#include <cuda_runtime.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <unordered_map>

#include "device.h"
#include "memory.h"

namespace host_device {
namespace {

using pretended::memory;
using Entry = std::pair<const uintptr_t, pretended::Block>;

// The kernel that runs, and the blocks that it has used last, with whether it has marked them as read and as written.
pretended::Use work;
int64_t launched = 0;
struct Recent {
  Entry* entry = nullptr;
  bool read = false, written = false;
};
Recent recent[8];
size_t next = 0;

// "sewsnn::generic::forward_kernel<...>"
const std::string& readable(const std::string& mangled) {
  static std::unordered_map<std::string, std::string> known;
  std::string& name = known[mangled];
  if (name.empty()) {
    int status = 0;
    char* const text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
    name = status == 0 ? text : mangled;
    name = name.substr(name.rfind("void ", 0) == 0 ? 5 : 0);
    name = name.substr(0, name.find(">(") == std::string::npos ? name.size() : name.find(">(") + 1);
    std::free(text);
  }
  return name;
}

void check(const void* p, size_t bytes, bool write) {
  check_begun();
  const auto address = reinterpret_cast<uintptr_t>(p);
  const char* const what = write ? "a write" : "a read";
  Recent* found = nullptr;
  for (Recent& r : recent)
    if (r.entry && address >= r.entry->first && address + bytes <= r.entry->first + r.entry->second.bytes) found = &r;
  if (!found) {
    Entry* const entry = memory().find(p, bytes);
    if (!entry) fail(std::string(what) + " of " + std::to_string(bytes) + " bytes outside of the device's memory");
    found = &recent[next++ % std::size(recent)];
    *found = {entry};
  }
  if (address % std::min<size_t>(bytes, 16))
    fail(std::string(what) + " of " + std::to_string(bytes) + " bytes that is not aligned to them");
  pretended::Block& block = found->entry->second;
  if (block.stream.device != work.stream.device)
    fail(std::string(what) + " in the memory of cuda:" + std::to_string(block.stream.device) +
         " by a kernel on cuda:" + std::to_string(work.stream.device));
  bool& marked = write ? found->written : found->read;
  if (marked) return;
  marked = true;
  const std::string wrong = memory().touch(block, work, write);
  if (!wrong.empty()) fail(wrong);
}

}  // namespace

void on_load(const void* p, size_t bytes) { check(p, bytes, false); }
void on_store(const void* p, size_t bytes) { check(p, bytes, true); }
void on_atomic(const void* p, size_t bytes) { check(p, bytes, true); }

std::shared_ptr<void> on_launch(cudaStream_t stream, const std::string& kernel) {
  auto lock = std::make_shared<std::unique_lock<std::recursive_mutex>>(pretended::mutex());
  const int device = pretended::current_device();
  const pretended::Stream current = pretended::current_stream(device);
  if (stream != current.handle()) {
    std::ostringstream text;
    text << readable(kernel) << " was launched on stream " << static_cast<void*>(stream) << " while " << current.name()
         << ", the current one of the current device, is " << current.handle();
    throw std::runtime_error(text.str());
  }
  work = memory().submit(current, readable(kernel));
  std::fill(std::begin(recent), std::end(recent), Recent());
  ++launched;
  return lock;
}

}  // namespace host_device

// ---- the part of CUDA's runtime that the ops use (shim/cuda_runtime_api.h)

cudaError_t cudaGetDevice(int* device) { return *device = pretended::current_device(), cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= pretended::kDevices) return cudaErrorInvalidDevice;
  return pretended::set_device(device), cudaSuccess;
}

extern "C" {
// For run.py: the number of launches, and the last kernels by their mangled names, one per line.
__attribute__((visibility("default"))) int64_t pretended_launches() { return host_device::launched; }
__attribute__((visibility("default"))) const char* pretended_kernels(int forget) {
  static std::string text;
  text.clear();
  for (const host_device::Launch& launch : host_device::device().launches) text += launch.kernel + "\n";
  if (forget) host_device::device().launches.clear();
  return text.c_str();
}
// The order in which threads and blocks run (device.h).
__attribute__((visibility("default"))) void pretended_schedule(unsigned schedule) {
  host_device::device().schedule = schedule;
}
}
