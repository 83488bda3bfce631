// The neuron and the surrogate of a call: as a type, or as a value that is chosen at run time. That choice is the same
// for all threads and costs one branch per group of time-steps.
#pragma once

#include "neurons/registry.h"

SEWSNN_BEGIN

// Whether the neuron is one of the most frequent.
template <class Neuron, class S>
constexpr bool kIsCommon = place_of<Neuron>(Common<S>()) < Common<S>::size;

// Calls f(Tag<Neuron>) with the struct of the neuron.
template <class S, class F>
auto with_neuron(const NeuronParams& p, F&& f) {
  return with_type(Kinds(), p.kind, [&](auto tag) {
    using Kind = typename decltype(tag)::type;
    return with_type(typename Kind::template Structs<S>(), Kind::struct_of(p), f);
  });
}

// A value of each type of a list; kernels read only the chosen one.
template <class... T>
struct Each;
template <class T>
struct Each<T> {
  T first;
};
template <class T, class... Rest>
struct Each<T, Rest...> {
  T first;
  Each<Rest...> rest;
};

template <class E>
constexpr bool is_last = false;
template <class T>
constexpr bool is_last<Each<T>> = true;

// Calls f with the value at this place.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class... T, class F>
SEWSNN_HD auto visit(const Each<T...>& values, int place, F&& f) {
  if constexpr (sizeof...(T) == 1) return f(values.first);
  else return place == 0 ? f(values.first) : visit(values.rest, place - 1, f);
}
// Calls f with every value.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class E, class F>
SEWSNN_HD void for_each(E& values, F&& f) {
  f(values.first);
  if constexpr (!is_last<std::remove_const_t<E>>) for_each(values.rest, f);
}

// A neuron or a surrogate that has been chosen before, with the interface of those that are chosen at run time.
template <class T>
struct Chosen {
  const T& value;

#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
  template <class F>
  SEWSNN_HD void visit(F&& f) const {
    f(value);
  }
};

// A neuron that the compiler knows.
template <class Neuron>
struct OneNeuron {
  using Shape = Neuron;  // which has the sizes
  Neuron value;

  static OneNeuron from(const NeuronParams& p) { return {Neuron::from(p)}; }
  template <class S>
  SEWSNN_HD void set_learnt(S learnt) {
    value.set_learnt(learnt);
  }
  template <class S>
  SEWSNN_HD S at_rest(const FireReset<S>& fire, int state) const {
    return value.at_rest(fire, state);
  }
  template <class S, class V, int N, class W>
  SEWSNN_HD auto spikes(const FireReset<S>& fire, const Numbers<V, N>& u, const W& w) const {
    return value.spikes(fire, u, w);
  }
  template <class S, class V, int N, class W>
  SEWSNN_HD V above_threshold(const FireReset<S>& fire, const Numbers<V, N>& u, const W& w) const {
    return value.above_threshold(fire, u, w);
  }
  SEWSNN_HD bool decays_input() const { return value.decays_input(); }
  SEWSNN_HD void set_decays_input() { value.set_decays_input(); }
  SEWSNN_HD void assume_usual() { value.assume_usual(); }
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
  template <class F>
  SEWSNN_HD void visit(F&& f) const {
    f(value);
  }
};

template <class T>
struct EachOf;
template <class... T>
struct EachOf<List<T...>> {
  using type = Each<T...>;
};

template <class... N>
constexpr bool are_common(List<N...>) {
  return ((N::kStates == 1 && N::kLearnt <= 1 && !N::kPerChannel && N::kBinary && N::kSurrogate && !N::kNonlinear &&
           !N::kOwnThreshold) &&
          ...);
}

// One of the neurons in Common, chosen at run time.
template <class S>
struct CommonNeuron {
  using Shape = LeakyMultiply<S>;  // the sizes of all of them: one state, one learnt number
  static_assert(are_common(Common<S>()), "a neuron of the list Common is not as registry.h says");
  int chosen;
  typename EachOf<Common<S>>::type neurons;

  // Whether the neuron of a call is one of these.
  static bool has(const NeuronParams& p) { return place(p) < Common<S>::size; }
  static CommonNeuron from(const NeuronParams& p) {
    CommonNeuron c;
    c.chosen = place(p);
    for_each(c.neurons, [&](auto& neuron) { neuron = std::decay_t<decltype(neuron)>::from(p); });
    return c;
  }
  SEWSNN_HD void set_learnt(S learnt) {
    for_each(neurons, [&](auto& neuron) { neuron.set_learnt(learnt); });
  }
  SEWSNN_HD S at_rest(const FireReset<S>& fire, int) const { return fire.v_reset; }
  template <class V, class W>
  SEWSNN_HD auto spikes(const FireReset<S>& fire, const Numbers<V, 1>& u, const W&) const {
    return fire.fires(u[0]);
  }
  template <class V, class W>
  SEWSNN_HD V above_threshold(const FireReset<S>& fire, const Numbers<V, 1>& u, const W&) const {
    return u[0] - fire.v_threshold;
  }
  SEWSNN_HD bool decays_input() const {
    bool all = true;
    for_each(neurons, [&](const auto& neuron) { all = all && neuron.decays_input(); });
    return all;
  }
  SEWSNN_HD void set_decays_input() {
    for_each(neurons, [](auto& neuron) { neuron.set_decays_input(); });
  }
  SEWSNN_HD void assume_usual() {
    for_each(neurons, [](auto& neuron) { neuron.assume_usual(); });
  }
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
  template <class F>
  SEWSNN_HD void visit(F&& f) const {
    sewsnn::visit(neurons, chosen, f);
  }

 private:
  static int place(const NeuronParams& p) {
    return with_neuron<S>(p, [](auto tag) { return place_of<typename decltype(tag)::type>(Common<S>()); });
  }
};

// Calls f(Tag<CommonNeuron<S>>) if it has the neuron, else f(Tag<OneNeuron<Neuron>>).
template <class S, class F>
auto with_family(const NeuronParams& p, F&& f) {
  return with_neuron<S>(p, [&](auto tag) {
    using Neuron = typename decltype(tag)::type;
    return f(Tag<std::conditional_t<kIsCommon<Neuron, S>, CommonNeuron<S>, OneNeuron<Neuron>>>());
  });
}

template <class T>
struct MembersOf;
template <class... T>
struct MembersOf<List<T...>> {
  using type = Members<T...>;
};

// A surrogate that is chosen at run time.
template <class S>
struct Surrogate {
  int kind;
  typename MembersOf<Surrogates<S>>::type surrogates;

  static Surrogate from(const NeuronParams& p) {
    Surrogate s = {};  // also the memory that this surrogate does not use
    s.kind = p.surrogate;
    set(s.surrogates, p.surrogate, p.alpha);
    return s;
  }

  // Whether it is ATan or UnitATan, and the one form of both.
  SEWSNN_HD static bool has_atan_form(int kind) { return kind == kATan || kind == kUnitATan; }
  SEWSNN_HD ATan<S> atan_form() const {
    return kind == kUnitATan ? ATan<S>(member<kUnitATan>(surrogates)) : member<kATan>(surrogates);
  }

  // Calls f with the chosen surrogate.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
  template <class F>
  SEWSNN_HD auto visit(F&& f) const {
    static_assert(Surrogates<S>::size <= 16, "add a case");
    // The compilers make better code of a switch than of a chain of comparisons.
    switch (kind) {
#define SEWSNN_CASE(I)                                                      \
  case I:                                                                   \
    if constexpr (I < Surrogates<S>::size) return f(member<I>(surrogates)); \
    else [[fallthrough]];
      SEWSNN_CASE(1)
      SEWSNN_CASE(2)
      SEWSNN_CASE(3)
      SEWSNN_CASE(4)
      SEWSNN_CASE(5)
      SEWSNN_CASE(6)
      SEWSNN_CASE(7)
      SEWSNN_CASE(8)
      SEWSNN_CASE(9)
      SEWSNN_CASE(10)
      SEWSNN_CASE(11)
      SEWSNN_CASE(12)
      SEWSNN_CASE(13)
      SEWSNN_CASE(14)
      SEWSNN_CASE(15)
#undef SEWSNN_CASE
      default: return f(member<0>(surrogates));
    }
  }

  static constexpr int kATan = place_of<ATan<S>>(Surrogates<S>()), kUnitATan = place_of<UnitATan<S>>(Surrogates<S>());

 private:
  template <class... T>
  static void set(Members<T...>& members, int place, double parameter) {
    using First = std::decay_t<decltype(members.first)>;
    if (sizeof...(T) == 1 || place == 0) {
      members.first = First::of(parameter);
    } else {
      if constexpr (sizeof...(T) > 1) set(members.rest, place - 1, parameter);
    }
  }
};

SEWSNN_END
