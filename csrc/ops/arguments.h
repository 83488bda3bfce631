// How an op reads its arguments and returns its results. torch's stable ABI passes both on one stack of 64-bit values.
// An op is a function from Arguments to a tuple of tensors; it reads all arguments before it checks any, because those
// that it has not read are never freed.
#pragma once

#include <new>
#include <stdexcept>
#include <tuple>

#include "core/neuron_numbers.h"
#include "neurons/kinds.h"
#include "ops/torch.h"

namespace sewsnn {

// These raise an error if there is no such kind, no such neuron.
const KindInfo& kind_of(const NeuronNumbers&);
NeuronParams checked(const NeuronNumbers&);

// Names of arguments are for the schema alone.
class Arguments {
 public:
  Arguments(const StableIValue* stack, uint64_t count) : at_(stack), end_(stack + count) {}

  Tensor tensor() { return next<Tensor>(); }
  MaybeTensor maybe_tensor() { return next<MaybeTensor>(); }
  double number(const char* = "") { return next<double>(); }
  std::optional<double> maybe_number(const char* = "") { return next<std::optional<double>>(); }
  int64_t whole(const char* = "") { return next<int64_t>(); }
  bool flag(const char* = "") { return next<bool>(); }
  ScalarType dtype() { return next<ScalarType>(); }
  std::vector<double> numbers() { return next<std::vector<double>>(); }
  std::vector<int64_t> wholes() { return next<std::vector<int64_t>>(); }
  // With `extra`, the last argument.
  NeuronNumbers neuron() {
    NeuronNumbers n = read_neuron(*this);
    n.extra = torch::stable::detail::to<std::vector<double>>(*--end_);
    return n;
  }

  bool at_end() const { return at_ == end_; }

 private:
  template <class T>
  T next() {
    STD_TORCH_CHECK(!at_end(), "the schema of an op has fewer arguments than its function reads");
    return torch::stable::detail::to<T>(*at_++);
  }

  const StableIValue *at_, *end_;
};

// A list of numbers in place of arguments: numbers that are arguments of their own cost the host ten times as much
// (docs/kernels.md). sewsnn/ops/options.py writes such lists. A number that may be missing is a flag and the number.
class NumberList {
 public:
  explicit NumberList(const std::vector<double>& numbers) : numbers_(numbers) {}
  double number(const char* = "");
  std::optional<double> maybe_number(const char* = "");
  int64_t whole(const char* = "");
  bool flag(const char* = "");
  NeuronNumbers neuron();  // with `extra`, after its size
  void end() const;        // an error if there are more numbers

 private:
  const std::vector<double>& numbers_;
  size_t at_ = 0;
};

// The function that torch calls for an op. If memory for a temporary is missing, it throws an error that says so.
// (memory.cpp does this for results.)
template <auto Op>
void boxed(StableIValue* stack, uint64_t arguments, uint64_t results) {
  try {
    Arguments read(stack, arguments);
    const auto made = Op(read);
    STD_TORCH_CHECK(read.at_end() && results == std::tuple_size_v<std::decay_t<decltype(made)>>,
                    "the schema of an op differs from its function");
    std::apply([&](const auto&... result) { ((*stack++ = torch::stable::detail::from(result)), ...); }, made);
    return;
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  throw std::runtime_error("sewsnn can't allocate memory for the work of an op");
}

using Library = torch::stable::detail::StableLibrary;

// Tells torch an op's schema, in which "{neuron}" stands for the numbers that read_neuron() reads, and "{extra}" for a
// neuron's further numbers: they are the last argument, which may be left out.
void def(Library&, const char* schema);

}  // namespace sewsnn
