// torch's operations on the pretended device: the CPU's kernels on the same memory. Each one is work on the current
// stream of its device, and marks the blocks that it reads and writes (memory.h).
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/Resize.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include "torch_device.h"

namespace pretended {
namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceType;

// A tensor of the CPU on the memory of t.
Tensor on_cpu(const Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  const auto options = at::TensorOptions().dtype(t.dtype());
  const int64_t bytes = int64_t(t.storage().nbytes());
  const Tensor all = bytes ? at::from_blob(t.storage().mutable_data(), {bytes / int64_t(t.itemsize())}, options)
                           : at::empty({0}, options);
  return at::as_strided(all, t.sizes(), t.strides(), t.storage_offset());
}

Tensor view_of(const Tensor& base, c10::IntArrayRef sizes, c10::IntArrayRef strides, int64_t offset) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()),
                                                       base.key_set(), base.dtype());
  view.unsafeGetTensorImpl()->set_storage_offset(offset);
  view.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return view;
}

Tensor empty_on(Device device, c10::IntArrayRef sizes, c10::IntArrayRef strides, at::ScalarType dtype) {
  const c10::DeviceGuard guard(device);
  return at::detail::empty_strided_generic(sizes, strides, &allocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           dtype);
}

// One operation: work on a stream that marks the tensors which it uses.
class Work {
 public:
  Work(int device, const std::string& name) : lock_(mutex()), use_(memory().submit(current_stream(device), name)) {}
  void touch(const Tensor& t, bool write) {
    if (!t.defined() || !t.is_cuda() || t.numel() == 0 || !t.has_storage()) return;
    auto* const found = memory().find(t.storage().data(), 1);
    if (!found) return;
    const std::string wrong = memory().touch(found->second, use_, write);
    TORCH_CHECK(wrong.empty(), wrong);
  }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
  Use use_;
};

// The arguments of an operation, as tensors of the CPU, and what they were on the device.
struct Call {
  std::vector<std::pair<Tensor, Tensor>> pairs;  // (on the device, on the CPU)
  std::vector<bool> written;
  int device = current_device();
  bool is_writing = false;

  Tensor in(const Tensor& t) {
    if (!t.defined() || !t.is_cuda()) return t;
    if (pairs.empty()) device = t.device().index();
    pairs.emplace_back(t, on_cpu(t));
    written.push_back(is_writing);
    return pairs.back().second;
  }

  c10::IValue in(const c10::IValue& v) {
    if (v.isTensor()) return in(v.toTensor());
    if (v.isTensorList()) {
      auto list = v.toTensorVector();
      for (Tensor& t : list) t = in(t);
      return list;
    }
    if (v.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& t : v.toOptionalTensorVector())
        list.push_back(t ? std::optional<Tensor>(in(*t)) : t);
      return list;
    }
    return v;
  }

  // A result that shares memory with an argument stays a view of it.
  Tensor out(const Tensor& t) const {
    if (!t.defined()) return t;
    for (const auto& [cuda, cpu] : pairs) {
      if (cpu.is_same(t)) return cuda;
      if (t.storage().data() && cpu.storage().data() == t.storage().data())
        return view_of(cuda, t.sizes(), t.strides(), t.storage_offset());
    }
    const Tensor copy =
        empty_on(Device(DeviceType::CUDA, c10::DeviceIndex(device)), t.sizes(), t.strides(), t.scalar_type());
    if (t.numel()) on_cpu(copy).copy_(t);
    return copy;
  }

  // Arguments that the operation made larger, such as out=.
  void resize() const {
    for (const auto& [cuda, cpu] : pairs) {
      if (cpu.sizes() == cuda.sizes()) continue;
      auto* const impl = cuda.unsafeGetTensorImpl();
      if (cpu.storage().nbytes() > cuda.storage().nbytes()) {
        const Tensor grown = empty_on(cuda.device(), cpu.sizes(), cpu.strides(), cpu.scalar_type());
        on_cpu(grown).copy_(cpu);
        impl->set_storage_keep_dtype(c10::Storage(grown.storage()));
        impl->set_storage_offset(0);
      }
      impl->set_sizes_and_strides(cpu.sizes(), cpu.strides());
    }
  }
};

// On a GPU the host waits for the result of these.
bool waits(const std::string& name) {
  static const std::set<std::string> names = {"aten::equal",    "aten::nonzero",    "aten::masked_select",
                                              "aten::_unique2", "aten::is_nonzero", "aten::repeat_interleave"};
  return names.count(name) != 0;
}

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string& name = schema.name();
  Call call;
  const size_t first = stack->size() - schema.arguments().size();
  bool device_given = false;
  for (size_t i = first; i < stack->size(); ++i) {
    c10::IValue& v = (*stack)[i];
    const auto* const alias = schema.arguments()[i - first].alias_info();
    call.is_writing = alias && alias->isWrite();
    if (v.isDevice() && v.toDevice().is_cuda()) {
      const Device d = v.toDevice();
      call.device = d.has_index() ? d.index() : current_device();
      device_given = true;
      v = Device(DeviceType::CPU);
    } else {
      const int before = call.device;
      v = call.in(v);
      if (device_given) call.device = before;
    }
  }
  if (waits(name)) {
    const std::lock_guard<std::recursive_mutex> lock(mutex());
    memory().synchronize(current_stream(call.device));
  }
  Work work(call.device, name);
  for (size_t i = 0; i < call.pairs.size(); ++i) work.touch(call.pairs[i].first, call.written[i]);
  op.callBoxed(stack);
  call.resize();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    c10::IValue& v = (*stack)[i];
    if (v.isTensor()) {
      v = call.out(v.toTensor());
      if (!schema.returns()[0].alias_info()) work.touch(v.toTensor(), true);
    } else if (v.isTensorList()) {
      auto list = v.toTensorVector();
      for (Tensor& t : list) t = call.out(t);
      v = list;
    }
  }
}

// ---- by hand: what makes tensors, copies between devices, and reads numbers

Device device_or_current(std::optional<Device> device) {
  return device && device->has_index() ? *device : Device(DeviceType::CUDA, c10::DeviceIndex(current_device()));
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  return empty_on(device_or_current(device), C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                  c10::dtype_or_default(dtype));
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
  return view_of(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                 offset ? offset->expect_int() : self.storage_offset());
}

Tensor& copy_(Tensor& self, const Tensor& from, bool non_blocking) {
  const at::RecordFunctionGuard quiet(false);  // a profiler counts the device's copy, not the one that plays it
  const int device = (self.is_cuda() ? self : from).device().index();
  {
    Work work(device, "copy_");
    work.touch(from, false);
    work.touch(self, true);
    on_cpu(self).copy_(on_cpu(from));
  }
  const bool from_host = !from.is_cuda(), to_host = !self.is_cuda();
  if ((from_host || to_host) && !non_blocking) {
    const std::lock_guard<std::recursive_mutex> lock(mutex());
    memory().synchronize(current_stream(device));
  }
  if (self.is_cuda() && from.is_cuda() && self.device() != from.device()) {
    // A copy between two devices: torch makes the current stream of each wait for the other's.
    const std::lock_guard<std::recursive_mutex> lock(mutex());
    const Stream a = current_stream(self.device().index()), b = current_stream(from.device().index());
    memory().wait(a, memory().clocks[b]);
    memory().wait(b, memory().clocks[a]);
  }
  return self;
}

at::Scalar local_scalar(const Tensor& t) {
  const std::lock_guard<std::recursive_mutex> lock(mutex());
  const Stream stream = current_stream(t.device().index());
  Work(stream.device, "item").touch(t, false);
  memory().synchronize(stream);
  return on_cpu(t).item();
}

Tensor& set_source(Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                   c10::SymIntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_storage_offset(offset.expect_int());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source) {
  const int64_t count = int64_t(source.nbytes() / self.itemsize());
  return set_source(self, std::move(source), 0, c10::fromIntArrayRefSlow({count}), c10::fromIntArrayRefSlow({1}));
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_source(self, source.storage(), source.storage_offset(), source.sym_sizes(), source.sym_strides());
}

void record(Tensor& self, c10::Stream stream) { record_stream(self.storage().data(), stream); }

}  // namespace
}  // namespace pretended

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&pretended::run>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", pretended::empty);
  m.impl("empty_strided", pretended::empty_strided);
  m.impl("as_strided", pretended::as_strided);
  m.impl("copy_", pretended::copy_);
  m.impl("_local_scalar_dense", pretended::local_scalar);
  m.impl("set_.source_Storage_storage_offset", pretended::set_source);
  m.impl("set_.source_Storage", pretended::set_storage);
  m.impl("set_.source_Tensor", pretended::set_tensor);
  m.impl("record_stream", pretended::record);
}
