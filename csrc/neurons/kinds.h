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
  bool common;       // in Common: the stem has it
};

template <class K, class... Other>
KindInfo info_of_structs(List<K, Other...>, const char* name, int learnt, int extra, bool uses_tau) {
  const bool common = place_of<K>(Common<float>()) < Common<float>::size;
  return {name, K::kStates, learnt, extra, K::kPerChannel, K::kBinary, K::kSurrogate, uses_tau, common};
}

template <class... K>
std::vector<KindInfo> infos_of(List<K...>) {
  return {info_of_structs(typename K::template Structs<float>(), K::kName, K::kLearnt, K::kExtra, K::kUsesTau)...};
}
inline const std::vector<KindInfo>& kinds() {
  static const std::vector<KindInfo> all = infos_of(Kinds());
  return all;
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
