// Moves, memory, branches, and what the threads of a block do together.
#include "operations.h"

#include <algorithm>

namespace ptx {
namespace {

using host_device::fail;
using host_device::Meeting;

unsigned char* inside(std::vector<unsigned char>& memory, u64 offset, size_t bytes, const char* what) {
  if (offset > memory.size() || bytes > memory.size() - offset)
    fail(std::string("an access outside of ") + what + ", at byte " + std::to_string(int64_t(offset)));
  if (offset % bytes) fail(std::string("a misaligned access to ") + what);
  return memory.data() + offset;
}

enum class Space { Global, Cached, Shared, Local, Param, Generic };

// The host's address of an operand. Checks it, and counts it if it is global.
template <Space S>
unsigned char* address(Thread& t, const Instruction& i, bool store) {
  const u64 at = (S == Space::Shared ? u64(t.get<u32>(i.x[4])) : t.get<u64>(i.x[4])) + u64(s64(i.offset));
  const size_t bytes = size_t(i.bytes) * i.count;
  if (S == Space::Shared || (S == Space::Generic && at >= kSharedBase && at < kLocalBase))
    return inside(shared(), at - kSharedBase, bytes, "shared memory");
  if (S == Space::Param || (S == Space::Generic && at >= kParamBase && at < kEnd))
    return inside(arguments(), at - kParamBase, bytes, "the arguments");
  if (S == Space::Local || (S == Space::Generic && at >= kLocalBase && at < kParamBase)) {
    if (at < kLocalBase || at - kLocalBase + bytes > t.program.local_bytes) fail("an access outside of local memory");
    return t.local + (at - kLocalBase);
  }
  const auto p = reinterpret_cast<unsigned char*>(at);
  if (store) host_device::on_store(p, bytes);
  else if (S == Space::Cached) host_device::on_cached_load(p, bytes);
  else host_device::on_load(p, bytes);
  return p;
}

template <Space S>
void load(Thread& t, const Instruction& i) {
  const unsigned char* const from = address<S>(t, i, false);
  for (int k = 0; k < i.count; ++k) {
    u64 value = 0;
    memcpy(&value, from + k * i.bytes, i.bytes);
    if (i.is_signed && i.bytes < 8 && value >> (8 * i.bytes - 1)) value |= ~u64(0) << 8 * i.bytes;
    t.slots[i.x[k]] = value;
  }
}

template <Space S>
void store(Thread& t, const Instruction& i) {
  unsigned char* const to = address<S>(t, i, true);
  for (int k = 0; k < i.count; ++k) memcpy(to + k * i.bytes, &t.slots[i.x[k]], i.bytes);
}

// Sets a number in memory to f(old, b, c), and returns the old one. Only one thread runs at a time.
template <class T, class F>
void atomic(Thread& t, const Instruction& i, const F& f) {
  const u64 at = t.get<u64>(i.x[4]) + u64(s64(i.offset));
  unsigned char* p = reinterpret_cast<unsigned char*>(at);
  if (at >= kSharedBase && at < kLocalBase) p = inside(shared(), at - kSharedBase, sizeof(T), "shared memory");
  else host_device::on_atomic(p, sizeof(T));
  T old;
  memcpy(&old, p, sizeof old);
  const T made = f(old, t.get<T>(i.x[1]), t.get<T>(i.x[2]));
  memcpy(p, &made, sizeof made);
  t.put<T>(i.x[0], old);
}

void add_moves(Table& table) {
  const Operation copy = [](Thread& t, const Instruction& i) { t.slots[i.x[0]] = t.slots[i.x[1]]; };
  for (const char* type : {"b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f32", "f64", "pred"}) {
    table[std::string("mov.") + type] = copy;
    table[std::string("selp.") + type] = [](Thread& t, const Instruction& i) {
      t.slots[i.x[0]] = t.slots[t.get<u8>(i.x[3]) & 1 ? i.x[1] : i.x[2]];
    };
  }
  for (const char* space : {"global", "shared", "local", "param", "const"}) {
    table[std::string("cvta.") + space + ".u64"] = copy;
    table[std::string("cvta.to.") + space + ".u64"] = copy;
  }
  // A tuple of narrow registers as one wide register, and the other way round.
  table["pack"] = [](Thread& t, const Instruction& i) {
    u64 whole = 0;
    for (int k = 0; k < i.count; ++k)
      memcpy(reinterpret_cast<char*>(&whole) + k * i.bytes, &t.slots[i.x[1 + k]], i.bytes);
    t.slots[i.x[0]] = whole;
  };
  table["unpack"] = [](Thread& t, const Instruction& i) {
    const u64 whole = t.slots[i.x[0]];
    for (int k = 0; k < i.count; ++k) {
      u64 part = 0;
      memcpy(&part, reinterpret_cast<const char*>(&whole) + k * i.bytes, i.bytes);
      t.slots[i.x[1 + k]] = part;
    }
  };
}

// shfl: c has the last lane of the segment in bits 0 to 4, and in bits 8 to 12 the bits that lanes of one segment
// share.
template <class F>
void shuffle(Thread& t, const Instruction& i, bool up, const F& source) {
  const u32 value = t.get<u32>(i.x[1]), b = t.get<u32>(i.x[2]) & 31, c = t.get<u32>(i.x[3]);
  const int lane = host_device::lane(), segment = int(c >> 8 & 31), last = (lane & segment) | (int(c & 31) & ~segment);
  const int first = lane & segment, from = source(lane, int(b), first, segment);
  const bool valid = up ? from >= last : from <= last;
  const u32 mask = t.get<u32>(i.x[4]);
  const host_device::Slot* const slots = host_device::meet_warp(Meeting::Shuffle, mask, &value, sizeof value);
  if (valid && !(mask >> from & 1)) fail("a shuffle from a lane that does not take part");
  u32 got;
  memcpy(&got, slots[valid ? from : lane].bytes, sizeof got);
  t.put<u32>(i.x[0], got);
  t.put<u8>(i.x[5], valid);
}

u32 votes(Thread& t, const Instruction& i) { return __ballot_sync(t.get<u32>(i.x[2]), t.get<u8>(i.x[1]) & 1); }

void add_warp(Table& table) {
  table["shfl.sync.up.b32"] = [](Thread& t, const Instruction& i) {
    shuffle(t, i, true, [](int lane, int b, int, int) { return lane - b; });
  };
  table["shfl.sync.down.b32"] = [](Thread& t, const Instruction& i) {
    shuffle(t, i, false, [](int lane, int b, int, int) { return lane + b; });
  };
  table["shfl.sync.bfly.b32"] = [](Thread& t, const Instruction& i) {
    shuffle(t, i, false, [](int lane, int b, int, int) { return lane ^ b; });
  };
  table["shfl.sync.idx.b32"] = [](Thread& t, const Instruction& i) {
    shuffle(t, i, false, [](int, int b, int first, int segment) { return first | (b & ~segment); });
  };
  table["vote.sync.ballot.b32"] = [](Thread& t, const Instruction& i) { t.put<u32>(i.x[0], votes(t, i)); };
  table["vote.sync.any.pred"] = [](Thread& t, const Instruction& i) { t.put<u8>(i.x[0], votes(t, i) != 0); };
  table["vote.sync.all.pred"] = [](Thread& t, const Instruction& i) {
    t.put<u8>(i.x[0], votes(t, i) == t.get<u32>(i.x[2]));
  };
  table["griddepcontrol.wait"] = [](Thread&, const Instruction&) { host_device::on_begin(); };
  table["bar.warp.sync"] = [](Thread& t, const Instruction& i) { __syncwarp(t.get<u32>(i.x[0])); };
  // Barrier 0 of all threads is the only one that kernels use.
  table["bar.sync"] = table["barrier.sync"] = [](Thread& t, const Instruction& i) {
    if (t.get<u32>(i.x[0]) != 0) fail("a barrier other than 0");
    __syncthreads();
  };
}

void add_atomics(Table& table) {
#define PTX_ATOMIC(name, T, expression)                                                                                \
  table[name] = [](Thread& t, const Instruction& i) {                                                                  \
    atomic<T>(t, i, []([[maybe_unused]] T old, [[maybe_unused]] T b, [[maybe_unused]] T c) { return T(expression); }); \
  };
  PTX_ATOMIC("atom.add.u32", u32, old + b)
  PTX_ATOMIC("atom.add.s32", u32, old + b)
  PTX_ATOMIC("atom.add.u64", u64, old + b)
  PTX_ATOMIC("atom.add.f32", f32, old + b)
  PTX_ATOMIC("atom.add.f64", f64, old + b)
  PTX_ATOMIC("atom.inc.u32", u32, old >= b ? 0 : old + 1)
  PTX_ATOMIC("atom.dec.u32", u32, old == 0 || old > b ? b : old - 1)
  PTX_ATOMIC("atom.exch.b32", u32, b)
  PTX_ATOMIC("atom.cas.b32", u32, old == b ? c : old)
  PTX_ATOMIC("atom.max.u32", u32, std::max(old, b))
  PTX_ATOMIC("atom.max.s32", s32, std::max(old, b))
  PTX_ATOMIC("atom.min.u32", u32, std::min(old, b))
  PTX_ATOMIC("atom.min.s32", s32, std::min(old, b))
  PTX_ATOMIC("atom.or.b32", u32, old | b)
  PTX_ATOMIC("atom.and.b32", u32, old & b)
}

}  // namespace

void add_memory(Table& table) {
  add_moves(table);
  table["ld.global"] = load<Space::Global>, table["ld.global.nc"] = load<Space::Cached>;
  table["ld.shared"] = load<Space::Shared>, table["ld.local"] = load<Space::Local>;
  table["ld.param"] = load<Space::Param>, table["ld"] = load<Space::Generic>;
  table["st.global"] = store<Space::Global>, table["st.shared"] = store<Space::Shared>;
  table["st.local"] = store<Space::Local>, table["st"] = store<Space::Generic>;
  add_warp(table);
  add_atomics(table);
  table["bra"] = [](Thread& t, const Instruction& i) { t.next = size_t(i.offset); };
  table["ret"] = [](Thread& t, const Instruction&) { t.next = t.program.code.size(); };
  table["trap"] = [](Thread&, const Instruction&) { fail("trap"); };
  // Blocks run one after the other, and kernels too: memory is always in order, and a kernel that another one waits for
  // has ended.
  table["nothing"] = [](Thread&, const Instruction&) {};
}

const Table& operations() {
  static const Table table = [] {
    Table made;
    add_arithmetic(made);
    add_conversions(made);
    add_memory(made);
    return made;
  }();
  return table;
}

}  // namespace ptx
