"""One property for all settings of a neuron: native equals the reference."""

import torch
from cases import compare, current
from hypothesis import given, settings
from hypothesis import strategies as st
from thorough import examples

from sewsnn import surrogate

ALPHA = st.sampled_from([0.4, 1.0, 2.0, 5.0])
SURROGATES = [getattr(surrogate, name) for name in surrogate.__all__ if name != "Surrogate"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    T = draw(st.integers(1, 40))
    inner = draw(st.lists(st.integers(0, 9), min_size=0, max_size=4))
    seed = draw(st.integers(0, 1000))
    # Any order of the dimensions in memory, then perhaps a slice, a stride over T or a repetition.
    order = draw(st.permutations(range(len(inner) + 1)))
    shape = [T, *inner]
    x = current([shape[d] for d in order], dtype, seed=seed).permute([order.index(d) for d in range(len(order))])
    form = draw(st.sampled_from(["plain", "repeated", "strided", "sliced"]))
    if form == "repeated":
        x = x[:1].expand(shape)
    elif form == "strided":
        x = x.repeat_interleave(2, dim=0)[::2]
    elif form == "sliced" and inner:
        x = torch.cat([x, x], dim=-1)[..., : inner[-1]]
    name = draw(st.sampled_from(["if", "lif", "plif"]))
    options = {
        "v_threshold": draw(st.sampled_from([1.0, 0.5, 1.3, -0.2])),
        "v_reset": draw(st.sampled_from([None, 0.0, -0.3, 0.25])),
        "surrogate_function": draw(st.sampled_from(SURROGATES))(draw(ALPHA)),
        "detach_reset": draw(st.booleans()),
        "store_v_seq": draw(st.booleans()),
        "loss": draw(st.sampled_from(["s", "v", "sv"])),
    }
    if name != "if":
        options["decay_input"] = draw(st.booleans())
    if name == "lif":
        options["tau"] = draw(st.sampled_from([1.0, 2.0, 1.3, 3.0, 8.0, 100.0]))
    if name == "plif":
        options["w"] = torch.tensor(draw(st.floats(-3, 3)))
    if draw(st.booleans()):
        options["v"] = current(inner, torch.float64 if dtype == torch.float64 else torch.float32, seed=seed + 1)
    return name, x, options


@settings(max_examples=examples(300))
@given(cases())
def test_native_equals_reference(case):
    name, x, options = case
    compare(name, x, **options)
