// What the ops and Python know of the kinds of neurons and of the surrogates. It follows from registry.h.
#pragma once

#include <string>
#include <vector>

#include "neurons/registry.h"

namespace sewsnn {

struct KindInfo {
  const char* name;
  int states;        // the first is the membrane potential
  int learnt;        // rows of NeuronParams::learnt
  int extra;         // numbers of NeuronParams::extra
  bool per_channel;  // a learnt parameter may have a number for each channel
  bool binary;       // spikes are 0 or 1
  bool surrogate;    // backward uses the surrogate
  bool uses_tau;     // tau must be at least 1
  bool in_stem;      // the stem has it: its first struct is in Common

  const char* (*problem)(const NeuronParams&);  // see Kind
};

template <class Kind, class K, class... Other>
KindInfo info_of(List<K, Other...>) {
  static_assert(K::kStates <= kMostStates && Kind::kLearnt <= kMostLearnt && Kind::kExtra <= kMostExtra,
                "a neuron has more numbers than core/params.h allows");
  // LIF shares LeakyMultiply with PLIF, and learns nothing.
  static_assert(Kind::kLearnt == K::kLearnt || (Kind::kLearnt == 0 && !K::kPerChannel),
                "the kind and its struct have other numbers of learnt parameters");
  static_assert(K::kPerChannel || K::kLearnt <= 1, "only parameters that may be per channel can be several");
  static_assert(((Other::kStates == K::kStates && Other::kPerChannel == K::kPerChannel &&
                  Other::kBinary == K::kBinary && Other::kSurrogate == K::kSurrogate) &&
                 ...),
                "the structs of a kind may differ in rounding only");
  const bool in_stem = place_of<K>(Common<float>()) < Common<float>::size;
  return {Kind::kName, K::kStates,    Kind::kLearnt,  Kind::kExtra, K::kPerChannel,
          K::kBinary,  K::kSurrogate, Kind::kUsesTau, in_stem,      Kind::problem};
}

template <class... K>
std::vector<KindInfo> infos_of(List<K...>) {
  return {info_of<K>(typename K::template Structs<float>())...};
}
inline const std::vector<KindInfo>& kinds() {
  static const std::vector<KindInfo> all = infos_of(Kinds());
  return all;
}

// The place of the kind with this number in the list; -1 if there is none.
inline int place_of_kind(int64_t number) {
  for (int place = 0; place < Kinds::size; ++place)
    if (number_of_kind(place) == number) return place;
  return -1;
}

template <class... S>
std::vector<const char*> names_of(List<S...>) {
  return {S::kName...};
}
inline const std::vector<const char*>& surrogates() {
  static const std::vector<const char*> all = names_of(Surrogates<float>());
  return all;
}

}  // namespace sewsnn
