"""Writes ONNX graphs (``.onnx``)."""

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sewsnn.errors import UserError
from sewsnn.export.agreement import Run, nodes_of
from sewsnn.export.torch_format import trace

OPSET = 20  # onnxruntime reads it since 1.17 (2024)
_INPUT, _OUTPUT, _SPIKES = "x", "logits", "spikes_{}"


def check_packages() -> None:
    """Raises UserError unless the packages that write ONNX are installed."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"format 'onnx' needs {' and '.join(missing)}: pip install 'sewsnn[export]'")


def write(network: nn.Module, example: Tensor, dim: int | None, native: bool = False) -> tuple[bytes, Callable, str]:
    """The bytes of a file, a function that loads such bytes, and the kind of the file.

    ``load(bytes)`` returns a function of one tensor and the name of the program that runs it. Spikes are traced as
    additional outputs for the comparison; the file does not contain these outputs.

    Raises:
        UserError: ONNX cannot express the network.
    """
    import onnx

    nodes = nodes_of(network)
    seen: list[Tensor] = []
    inner = network.forward

    def forward(x):
        seen.clear()
        output = inner(x)
        return (output, *seen)

    hooks = [node.register_forward_hook(lambda _, __, s: seen.append(s)) for node in nodes]
    network.forward = forward
    try:
        program = trace(network, example, dim)
    finally:
        del network.forward
        for hook in hooks:
            hook.remove()
    layers = len(seen)
    seen.clear()
    watched = _to_onnx(program, [_OUTPUT, *map(_SPIKES.format, range(layers))])
    _tidy(watched)
    plain = onnx.ModelProto()
    plain.CopyFrom(watched)
    del plain.graph.output[1:]
    try:
        onnx.checker.check_model(plain, full_check=True)
        data = plain.SerializeToString()
    except Exception as error:
        raise UserError(f"the ONNX graph is not valid: {_first_line(error)}") from error
    spikes = [output.name for output in watched.graph.output[1:]]
    return data, lambda data: _load(data, spikes), f"ONNX opset {OPSET}"


def _to_onnx(program, outputs: list[str]):
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=[_INPUT],
                output_names=outputs,
                external_data=False,
                verbose=False,
            )
        return made.model_proto
    except Exception as error:
        raise UserError(f"torch.onnx cannot express the network: {_first_line(error)}") from error
    finally:
        log.setLevel(level)


def _tidy(model) -> None:
    """Removes the traces that name files of this machine, and gives the open dimension a readable name."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    open_sizes = {d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim if d.dim_param}
    for value in values:
        del value.metadata_props[:]
        for d in value.type.tensor_type.shape.dim:
            if d.dim_param in open_sizes:
                d.dim_param = "batch"
    del model.metadata_props[:]
    del model.graph.metadata_props[:]


def _load(data: bytes, spikes: list[str]) -> tuple[Callable[[Tensor], Run], str]:
    """The graph in the file as a function, with the spikes as additional outputs.

    It runs in onnxruntime if that is installed, else in the (slow) reference implementation of onnx.
    """
    import onnx

    model = onnx.load_from_string(data)
    known = {value.name: value for value in model.graph.value_info}
    made = {name for node in model.graph.node for name in node.output}
    for name in spikes:
        if name in made and name != _OUTPUT:
            model.graph.output.append(known.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    call, by = _runtime(model)

    def run(x: Tensor) -> Run:
        try:
            output, *found = (torch.from_numpy(a) for a in call({_INPUT: x.contiguous().numpy()}))
        except Exception as error:
            raise UserError(f"{by} cannot run the ONNX graph: {_first_line(error)}") from error
        return Run(output, found)

    return run, by


def _runtime(model) -> tuple[Callable, str]:
    import onnx

    if importlib.util.find_spec("onnxruntime") is None:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        return lambda feed: evaluator.run(None, feed), f"the reference of onnx {onnx.__version__}"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    by = f"onnxruntime {onnxruntime.__version__}"
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{by} cannot load the ONNX graph: {_first_line(error)}") from error
    return lambda feed: session.run(None, feed), by


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
