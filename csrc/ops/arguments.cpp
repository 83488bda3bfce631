#include "ops/arguments.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace sewsnn {
namespace {

constexpr double kMostWhole = double((int64_t(1) << 31) - 1);

// Notes what is read instead of reading it.
class SchemaWriter {
 public:
  double number(const char* name) { return add("float ", name), 0; }
  std::optional<double> maybe_number(const char* name) { return add("float? ", name), std::nullopt; }
  int64_t whole(const char* name) { return add("int ", name), 0; }
  bool flag(const char* name) { return add("bool ", name), false; }
  const std::string& text() const { return text_; }

 private:
  void add(const char* type, const char* name) {
    if (!text_.empty()) text_ += ", ";
    text_ += type;
    text_ += name;
  }

  std::string text_;
};

void replace(std::string& text, const std::string& word, const std::string& by) {
  const size_t at = text.find(word);
  if (at != std::string::npos) text.replace(at, word.size(), by);
}

}  // namespace

const KindInfo& kind_of(const NeuronNumbers& n) {
  const int place = place_of_kind(n.kind);
  STD_TORCH_CHECK(place >= 0, "unknown neuron kind ", n.kind);
  return kinds()[size_t(place)];
}

NeuronParams checked(const NeuronNumbers& n) {
  const KindInfo& kind = kind_of(n);
  STD_TORCH_CHECK(n.surrogate >= 0 && n.surrogate < int64_t(surrogates().size()), "unknown surrogate kind ",
                  n.surrogate);
  NeuronParams p = n.rest;
  p.kind = place_of_kind(n.kind), p.surrogate = int(n.surrogate);
  STD_TORCH_CHECK(std::isfinite(p.v_threshold), "v_threshold must be finite");
  STD_TORCH_CHECK(std::isfinite(p.v_reset), "v_reset must be finite or None");
  STD_TORCH_CHECK(!kind.uses_tau || (p.tau >= 1 && std::isfinite(p.tau)), "tau must be at least 1, and finite");
  STD_TORCH_CHECK(p.alpha > 0 && std::isfinite(p.alpha), "the surrogate's parameter must be positive and finite, got ",
                  p.alpha);
  STD_TORCH_CHECK(n.extra.size() == size_t(kind.extra), kind.name, " has ", kind.extra, " extra numbers, got ",
                  n.extra.size());
  for (const double x : n.extra)
    STD_TORCH_CHECK(std::isfinite(x), "the extra numbers of ", kind.name, " must be finite");
  std::copy(n.extra.begin(), n.extra.end(), p.extra);
  const char* const problem = kind.problem(p);
  STD_TORCH_CHECK(!problem, kind.name, ": ", problem);
  return p;
}

double NumberList::number(const char*) {
  STD_TORCH_CHECK(at_ < numbers_.size(), "there must be more than ", numbers_.size(), " numbers");
  return numbers_[at_++];
}

std::optional<double> NumberList::maybe_number(const char*) {
  const bool given = flag();
  const double x = number();
  return given ? std::optional<double>(x) : std::nullopt;
}

int64_t NumberList::whole(const char*) {
  const double x = number();
  STD_TORCH_CHECK(std::abs(x) <= kMostWhole && x == std::floor(x), "number ", at_ - 1,
                  " must be an integer of at most 32 bits, got ", x);
  return int64_t(x);
}

bool NumberList::flag(const char*) {
  const double x = number();
  STD_TORCH_CHECK(x == 0 || x == 1, "number ", at_ - 1, " must be 0 or 1, got ", x);
  return x == 1;
}

NeuronNumbers NumberList::neuron() {
  NeuronNumbers n = read_neuron(*this);
  const int64_t extra = whole();
  STD_TORCH_CHECK(extra >= 0 && extra <= kMostExtra, "there can be 0 to ", kMostExtra, " extra numbers, got ", extra);
  for (int64_t i = 0; i < extra; ++i) n.extra.push_back(number());
  return n;
}

void NumberList::end() const {
  STD_TORCH_CHECK(at_ == numbers_.size(), "there must be ", at_, " numbers, got ", numbers_.size());
}

void def(Library& m, const char* schema) {
  SchemaWriter neuron;
  read_neuron(neuron);
  std::string text = schema;
  replace(text, "{neuron}", neuron.text());
  replace(text, "{extra}", "float[] extra=[]");
  m.def(text.c_str());
}

}  // namespace sewsnn
