// What the pretended device knows about memory, devices, streams, and the order of work.
//
// Work (a kernel, or an operation of torch) runs at once, on the host, when it is submitted. What a GPU would allow is
// tracked beside it with vector clocks: each stream counts its work, and knows up to which work of the other streams it
// has waited. Work A comes before work B if B's stream knows A. Two uses of a block that have no order, one of them a
// write, are a race; so is freeing a block that another stream may still use. Both are errors here, also where the GPU
// would have been lucky.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace pretended {

constexpr int kDevices = 2;

// A stream of a device; number 0 is the default stream. `handle` is what a cudaStream_t of it would be.
struct Stream {
  int device = 0;
  int64_t number = 0;
  bool operator<(const Stream& other) const {
    return device != other.device ? device < other.device : number < other.number;
  }
  bool operator==(const Stream& other) const { return device == other.device && number == other.number; }
  void* handle() const { return reinterpret_cast<void*>((int64_t(device) + 1) << 32 | number); }
  std::string name() const { return "stream " + std::to_string(number) + " of cuda:" + std::to_string(device); }
};

// For each stream, the number of its last work that is known to have ended.
using Clock = std::map<Stream, int64_t>;
void join(Clock& clock, const Clock& other);

struct Use {
  Stream stream;
  int64_t time = 0;
  std::string what;
};

struct Block {
  size_t bytes = 0;
  Stream stream;               // the current one when the block was allocated
  Use written;                 // the last write; the allocation counts as one
  std::map<Stream, Use> uses;  // the last use by each stream
  std::set<Stream> recorded;   // Tensor.record_stream
};

// The current device, and the current stream of each device. Each host thread has its own.
int current_device();
void set_device(int device);
Stream current_stream(int device);
void set_stream(Stream);
Stream new_stream(int device);

// Protects everything below. Whoever uses `Memory` holds it.
std::recursive_mutex& mutex();

struct Memory {
  std::map<uintptr_t, Block> blocks;  // by the address of their first byte
  std::map<Stream, Clock> clocks;
  Clock host;                         // what the host has waited for
  std::vector<std::string> problems;  // found where nothing can be raised: a block was freed too early
  size_t allocated = 0, most = 0;     // bytes in blocks, and their maximum
  bool waiting_is_an_error = false;   // torch.cuda.set_sync_debug_mode("error")

  // Begins work on a stream; `what` names it in errors. Everything the host waited for comes before it.
  Use submit(Stream, const std::string& what);
  // The block in which [p, p + bytes) lies, or null.
  std::pair<const uintptr_t, Block>* find(const void* p, size_t bytes);
  // Marks a use of the block by this work. Returns what is wrong with it; empty: nothing.
  std::string touch(Block&, const Use& work, bool write);
  void wait(Stream waiting, const Clock& for_this);
  // The host waits. Throws if that is an error now.
  void synchronized() const;
  void synchronize(Stream);
  void synchronize_device(int device);
};
Memory& memory();

// Allocates on the current device. A block ends at a page that cannot be accessed, and is filled with 0xff (NaN).
void* allocate(size_t bytes);
void release(void*);

}  // namespace pretended
