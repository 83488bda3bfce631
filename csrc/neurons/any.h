// A neuron that is chosen at run time, for kernels that already have many instances. The choice is the same for all
// threads and costs one branch per group of time-steps.
#pragma once

#include "core/dispatch.h"

SEWSNN_BEGIN

template <class S>
struct AnyNeuron {
  enum class Form : int { Integrate, Divide, Multiply };
  Form form;
  // Every form is initialised. A kernel reads only those of its arguments that it needs.
  IntegrateFire<S> integrate;
  LeakyDivide<S> divide;
  LeakyMultiply<S> multiply;

  static constexpr Form form_of(IntegrateFire<S>*) { return Form::Integrate; }
  static constexpr Form form_of(LeakyDivide<S>*) { return Form::Divide; }
  static constexpr Form form_of(LeakyMultiply<S>*) { return Form::Multiply; }

  static AnyNeuron from(const NeuronParams& p, S leak) {
    const Form form = with_neuron<S>(p, [](auto tag) {
      using Neuron = typename decltype(tag)::type;
      return form_of(static_cast<Neuron*>(nullptr));
    });
    return {form, IntegrateFire<S>::from(p, leak), LeakyDivide<S>::from(p, leak), LeakyMultiply<S>::from(p, leak)};
  }
  SEWSNN_HD void set_leak(S leak) { multiply.set_leak(leak); }

  // See FireReset; with decay_input.
  SEWSNN_HD void assume_usual() {
    divide.decay_input = multiply.decay_input = true;
    divide.rest = multiply.rest = S(0);
  }

  // Calls f with the chosen neuron.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
  template <class F>
  SEWSNN_HD void visit(F&& f) const {
    switch (form) {
      case Form::Integrate: return f(integrate);
      case Form::Divide: return f(divide);
      case Form::Multiply: return f(multiply);
    }
  }
};

SEWSNN_END
