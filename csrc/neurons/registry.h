// All neurons and all surrogates. From the two lists follow the numbers that the ops take, the choice of a kernel, and
// the list that sewsnn/ops/registry.py reads from the library. Exported programs contain the numbers, so a new neuron
// or surrogate goes to the end.
#pragma once

#include "core/lists.h"
#include "neurons/adaptive.h"
#include "neurons/current_based.h"
#include "neurons/integer.h"
#include "neurons/integrate_fire.h"
#include "neurons/leaky.h"
#include "neurons/learnt_leaky.h"
#include "neurons/quadratic.h"
#include "neurons/surrogate.h"

SEWSNN_BEGIN

using Kinds = List<IF, LIF, PLIF, LearntLIF, CUBALIF, AdaptiveLIF, ILIF, QIF>;

// The number of a kind in the ops. 3 to 9 are not used: in files of early versions 3 means that there is no neuron.
constexpr int number_of_kind(int place) { return place < 3 ? place : place + 7; }

template <class S>
using Surrogates = List<ATan<S>, Rectangular<S>, Constant<S>, Sigmoid<S>, PiecewiseQuadratic<S>, PiecewiseExp<S>,
                        SoftSign<S>, SuperSpike<S>, Erf<S>, UnitATan<S>>;

// The structs of the most frequent kinds: one state, at most one learnt number for the layer, spikes that are 0 or 1,
// and the threshold of fire.h. Kernels with many instances (batch norm, stem) choose one of them at run time and have
// instances of their own for every other struct; the stem has only these.
template <class S>
using Common = List<IntegrateFire<S>, LeakyDivide<S>, LeakyMultiply<S>>;

SEWSNN_END
