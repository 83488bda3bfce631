"""The nodes of ``spikingjelly.clock_driven`` (0.0.0.0.4 to 0.0.0.0.14), computed by sewsnn. Imports SpikingJelly.

A class is either single-step or multi-step. A multi-step node stores ``v_seq`` after every call. Nearly nobody reads
it, so it is computed when somebody does. Up to 0.0.0.0.8 nodes also store ``spike`` and ``spike_seq``.
"""

from collections.abc import Callable

import torch
from spikingjelly.clock_driven import neuron as theirs
from spikingjelly.clock_driven import surrogate
from torch import Tensor

from sewsnn import functional, neuron
from sewsnn.convert import surrogates
from sewsnn.convert.bridge import Bridge
from sewsnn.convert.state import lost_graph
from sewsnn.ops.neuron import V_SEQUENCE
from sewsnn.ops.reference import state_dtype
from sewsnn.ops.spec import NeuronSpec

surrogates.register(surrogate)


class _Single(Bridge):
    store_v_seq = False
    decay_input = True  # 0.0.0.0.4 to 0.0.0.0.8 lack this setting
    _steps = "s"

    @property
    def step_mode(self) -> str:
        """``"s"`` or ``"m"``, which depends on the class."""
        return self._steps

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        pass  # set_step_mode of activation_based passes over nodes of clock_driven, which have no such setting

    def _note_call(self, s: Tensor, x_seq: Tensor, before: Tensor | None) -> None:
        if "spike" in self._memory() or "spike" in self.__dict__:
            self.spike = s.clone()


class _Multi(_Single):
    _steps = "m"

    def _note_call(self, s: Tensor, x_seq: Tensor, before: Tensor | None) -> None:
        if "spike" in self._memory():
            self.spike, self.spike_seq = s[-1].clone(), s
        spec, learnt, backend = self.spec(), self.learnt_parameters(state_dtype(x_seq.dtype)), self.wanted_backend
        version = x_seq._version if not x_seq.is_inference() else None

        def compute() -> Tensor:
            if version is not None and x_seq._version != version:
                raise RuntimeError(
                    "v_seq is computed when it is first read, but the input of the neuron was changed in place in the "
                    "meantime: read v_seq before this change"
                )
            return functional.multistep(x_seq, before, spec, learnt, v_mode=V_SEQUENCE, backend=backend)[1]

        self._compute_later(compute)

    def note_joined_call(self, s: Tensor, y_seq: Callable, spec: NeuronSpec, learnt: Tensor | None) -> None:
        """What SpikingJelly's node stores after a call in one op with batch norm; ``y_seq()`` computes its input."""
        if "spike" in self._memory():
            self.spike, self.spike_seq = s[-1].clone(), s
        backend, graph = self.wanted_backend, s.requires_grad

        def compute() -> Tensor:
            with torch.no_grad():
                v_seq = functional.multistep(y_seq(), None, spec, learnt, v_mode=V_SEQUENCE, backend=backend)[1]
            return lost_graph(v_seq, "v_seq") if graph else v_seq

        self._compute_later(compute)

    def _compute_later(self, compute) -> None:
        if "v_seq" in self._memory():
            self._memory()["v_seq"] = None
            grad = torch.is_grad_enabled()
            self.__dict__["_v_seq_later"] = lambda: torch.set_grad_enabled(grad), compute

    def __getattr__(self, name):
        if name == "v_seq" and "_v_seq_later" in self.__dict__:
            enabled, compute = self.__dict__.pop("_v_seq_later")
            with enabled():
                self._memory()["v_seq"] = compute()
        return super().__getattr__(name)

    def __setattr__(self, name, value):
        if name == "v_seq":
            self.__dict__.pop("_v_seq_later", None)
        super().__setattr__(name, value)

    def reset(self) -> None:
        self.__dict__.pop("_v_seq_later", None)
        super().reset()

    def detach(self) -> None:
        self.v_seq  # noqa: B018  computed now, to be detached
        super().detach()

    def _apply(self, fn, recurse=True):
        self.v_seq  # noqa: B018  computed now, to be moved
        return super()._apply(fn, recurse)

    def named_memories(self):
        self.v_seq  # noqa: B018
        return super().named_memories()

    def memories(self):
        self.v_seq  # noqa: B018
        return super().memories()

    def __getstate__(self):
        if "v_seq" in self._memory():
            self.v_seq  # noqa: B018
        return super().__getstate__()


_KINDS = {
    "IFNode": (_Single, neuron.IFNode),
    "LIFNode": (_Single, neuron.LIFNode),
    "ParametricLIFNode": (_Single, neuron.ParametricLIFNode),
    "QIFNode": (_Single, neuron.QIFNode),
    "MultiStepIFNode": (_Multi, neuron.IFNode),
    "MultiStepLIFNode": (_Multi, neuron.LIFNode),
    "MultiStepParametricLIFNode": (_Multi, neuron.ParametricLIFNode),
}
#: the classes that are swapped, by exact type
CLASSES: dict[type, type] = {}
for _name, (_steps, _ours) in _KINDS.items():
    if hasattr(theirs, _name):
        _class = type(_name, (_steps, _ours, getattr(theirs, _name)), {"__module__": __name__, "tau_grad": "full"})
        CLASSES[getattr(theirs, _name)] = globals()[_name] = _class
