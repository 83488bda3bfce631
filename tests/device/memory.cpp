#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>

namespace pretended {
namespace {

constexpr size_t kPage = 4096, kAlignment = 512;

thread_local int device_now = 0;
thread_local int64_t streams_now[kDevices] = {};

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }
// The block is at the end of its pages, so that the next byte is on a page that cannot be accessed.
size_t room_for(size_t bytes) { return rounded(rounded(bytes, kAlignment), kPage); }

}  // namespace

void join(Clock& clock, const Clock& other) {
  for (const auto& [stream, time] : other) clock[stream] = std::max(clock[stream], time);
}

int current_device() { return device_now; }
void set_device(int device) { device_now = device; }
Stream current_stream(int device) { return {device, streams_now[device]}; }
void set_stream(Stream stream) { streams_now[stream.device] = stream.number; }
Stream new_stream(int device) {
  static std::atomic<int64_t> count{0};
  return {device, ++count};
}

std::recursive_mutex& mutex() {
  static std::recursive_mutex& instance = *new std::recursive_mutex;
  return instance;
}

// Never destroyed: tensors may live longer than static objects.
Memory& memory() {
  static Memory& instance = *new Memory;
  return instance;
}

Use Memory::submit(Stream stream, const std::string& what) {
  Clock& clock = clocks[stream];
  join(clock, host);
  return {stream, ++clock[stream], what};
}

std::pair<const uintptr_t, Block>* Memory::find(const void* p, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  auto it = blocks.upper_bound(address);
  if (it == blocks.begin()) return nullptr;
  --it;
  return address + bytes <= it->first + it->second.bytes ? &*it : nullptr;
}

std::string Memory::touch(Block& block, const Use& work, bool write) {
  std::string wrong;
  const Clock& known = clocks[work.stream];
  const auto check = [&](const Use& before, const char* did) {
    const auto it = known.find(before.stream);
    if (before.stream == work.stream || (it != known.end() && it->second >= before.time) || !wrong.empty()) return;
    wrong = work.what + " on " + work.stream.name() + (write ? " writes" : " reads") + " memory that " + before.what +
            did + " on " + before.stream.name() + ", without waiting for that stream";
  };
  if (block.written.time) check(block.written, " wrote");
  if (write)
    for (const auto& [stream, use] : block.uses) check(use, " used");
  block.uses[work.stream] = work;
  if (write) block.written = work;
  return wrong;
}

void Memory::wait(Stream waiting, const Clock& for_this) { join(clocks[waiting], for_this); }

void Memory::synchronized() const {
  if (waiting_is_an_error) throw std::runtime_error("called a synchronizing CUDA operation");
}

void Memory::synchronize(Stream stream) {
  synchronized();
  join(host, clocks[stream]);
}

void Memory::synchronize_device(int device) {
  synchronized();
  for (const auto& [stream, clock] : clocks)
    if (stream.device == device) join(host, clock);
}

void* allocate(size_t bytes) {
  const size_t room = room_for(bytes);
  char* const base =
      static_cast<char*>(mmap(nullptr, room + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED) throw std::bad_alloc();
  mprotect(base + room, kPage, PROT_NONE);
  char* const p = base + room - rounded(bytes, kAlignment);
  memset(p, 0xff, rounded(bytes, kAlignment));
  const std::lock_guard<std::recursive_mutex> lock(mutex());
  Memory& m = memory();
  Block block;
  block.bytes = bytes;
  block.stream = current_stream(current_device());
  // Its bytes may have belonged to a block whose last user has not ended. Only its own stream comes after that.
  const auto clock = m.clocks.find(block.stream);
  block.written = {block.stream, clock == m.clocks.end() ? 0 : clock->second[block.stream], "an earlier block"};
  m.blocks[reinterpret_cast<uintptr_t>(p)] = block;
  m.allocated += bytes;
  m.most = std::max(m.most, m.allocated);
  return p;
}

void release(void* p) {
  const std::lock_guard<std::recursive_mutex> lock(mutex());
  Memory& m = memory();
  const auto it = m.blocks.find(reinterpret_cast<uintptr_t>(p));
  const Block& block = it->second;
  Clock known = m.host;
  join(known, m.clocks[block.stream]);
  for (const auto& [stream, use] : block.uses) {
    if (stream == block.stream || block.recorded.count(stream) || known[stream] >= use.time) continue;
    m.problems.push_back("memory of " + block.stream.name() + " was freed although " + use.what + " on " +
                         stream.name() + " may still use it: neither record_stream nor a wait comes before");
  }
  const size_t room = room_for(block.bytes), padded = rounded(block.bytes, kAlignment);
  m.allocated -= block.bytes;
  m.blocks.erase(it);
  munmap(static_cast<char*>(p) + padded - room, room + kPage);
}

}  // namespace pretended
