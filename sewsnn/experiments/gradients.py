"""``sewsnn analyze gradients``: the norm of the gradient at each block, beside equation S4 (supplement, A.4)."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sewsnn.analysis.blocks import blocks_of, last_neuron
from sewsnn.analysis.gradients import BlockGradient, gradient_norms, predicted_norms
from sewsnn.errors import ConfigError, short
from sewsnn.experiments.forms import RESIDUALS, data_in_words, seeds_in_words
from sewsnn.experiments.gradient_figures import Pass, Setting, add_blocks, add_depths
from sewsnn.experiments.gradient_findings import add_findings
from sewsnn.experiments.report import Report
from sewsnn.experiments.sources import Opened, as_user_error, fresh, open_networks, train_batches
from sewsnn.files import is_folder
from sewsnn.models import list_models
from sewsnn.progress import Bar
from sewsnn.train import build
from sewsnn.train.config import Config, check, load_config
from sewsnn.train.schema import NeuronConfig

_COLUMNS = {
    "model": "name of the network",
    "depth": "depth in the name of a ResNet; of any other network the number of its blocks",
    "residual": "`spiking`: SN(F(S) + S); `sew`: g(SN(F(S)), S); `plain`: SN(F(S))",
    "zero_init": "1: the last batch norm of each block has weight 0 (zero_init_residual); 0: "
    "it has the default weight 1; empty: the weights are not fresh",
    "v_threshold": "V_th, the firing threshold",
    "alpha": "parameter of the surrogate gradient",
    "seed": "seed of the weights and of the batch",
    "block": "index l of the block, from 1 at the input",
    "name": "name of the block in the network",
    "downsample": "1: the shortcut has a convolution",
    "rate": "Phi, spikes per neuron and time-step of the block's input S^l",
    "elements": "N T: elements of S^l over all samples, neurons and time-steps of a batch",
    "norm": "||dL/dS^l||, root mean square over the batches",
    "norm_output": "||dL/dO^l||, root mean square over the batches",
    "predicted": "||dL/dS^l|| by equation S4 (SEW: equation 9) from ||dL/dO|| at the end of the row of identity "
    "blocks; empty where the block is not an identity",
    "element_wise": "||dL/dS^l|| by equations S1 to S3 element by element, with the gradient through the membrane "
    "potential; empty where the block is not an identity",
}


class _Network(NamedTuple):
    """What one pass measures: a configuration, except for its seed, and the words and numbers that describe it."""

    config: Config
    depth: int
    zero_init: bool | None
    setting: Setting


def run(
    source: str, overrides: Mapping[str, str], output: Path, *, weights: str | None = None, command: str = ""
) -> Path:
    """Measures the gradient norms of Spiking and SEW networks and writes the report.

    Args:
        source: a configuration file, or the folder of a run. A configuration of a ResNet gives fresh Spiking and SEW
            ResNets of ``analysis.depths``, any other the Spiking and the SEW form of its network, each for every
            pair of ``analysis.settings``, with and without ``zero_init_residual``. A run, ``weights`` or
            ``model.weights``: this network only, with its own neurons.
        overrides: configuration keys and values, as on the command line.
        output: the folder for the report.
        weights: a checkpoint for a configuration file.
        command: the command line, for the report.

    Returns:
        The path of the report.

    Raises:
        UserError: a setting or a file is wrong, or a network has no blocks; the message names it.

    Source: main paper, section 3.2; supplement, A.4.
    """
    given = None
    if weights is not None or is_folder(Path(source)):
        given = open_networks(source, overrides, weights)[0]
    else:
        config = load_config(source, dict(overrides))
        if config.model.weights:
            given = fresh(config)
    config = given.config if given else config
    networks = [_of_given(given)] if given else _fresh_networks(config)
    if not networks[0].depth:
        _blocks(given or fresh(networks[0].config))
    with Report("gradients", "Gradient norms of the blocks (A.4)", output, _about(config, networks, given)) as report:
        passes = _measure(config, networks, given)
        _write(report, config, passes)
        return report.write(command)


def _about(config: Config, networks: list[_Network], given: Opened | None) -> list[str]:
    names = list(dict.fromkeys(network.config.model.name for network in networks))
    neuron = config.model.neuron
    lines = [
        f"network{'s' if len(names) > 1 else ''}: {', '.join(names)}; T = {config.model.T}, {neuron.type} neurons",
        f"loss: cross entropy of the mean logits, for {max(config.analysis.batches, 1)} training batch(es) of "
        f"{config.data.batch_size} samples of {data_in_words(config)}, in training mode (batch statistics) and float32",
    ]
    if given:
        lines.append(
            "weights: those of the source; this network only, with its own neurons, so that analysis.depths and "
            "analysis.settings do not apply"
        )
        return lines
    lines.append(
        f"weights: random, {seeds_in_words(config)}; neurons with V_th and ATan(alpha) from analysis.settings in all "
        "layers"
    )
    if config.model.last_neuron:
        lines.append("model.last_neuron is not used: all layers have the same neuron")
    if config.model.blocks and "_resnet" in config.model.name:
        lines.append("model.blocks and model.widths are not used: each network has the published size of its depth")
    return lines


# ---- the networks


def _fresh_networks(config: Config) -> list[_Network]:
    """The networks of a configuration: every setting, with and without zero_init_residual, every name."""
    networks = []
    for v_threshold, alpha in config.analysis.settings:
        for zero_init in (True, False):
            for name, depth in _names(config):
                found = copy.deepcopy(config)
                model = found.model
                model.name, model.zero_init_residual, model.last_neuron = name, zero_init, None
                if depth:
                    model.blocks, model.widths = [], []
                model.neuron.v_threshold = v_threshold
                model.neuron.surrogate, model.neuron.surrogate_parameter = "ATan", alpha
                check(found)
                networks.append(_Network(found, depth, zero_init, _setting(model.neuron)))
    return networks


def _names(config: Config) -> list[tuple[str, int]]:
    """Names of the networks to compare with their depths, which are 0 for networks that are not ResNets."""
    known = list_models()
    if "_resnet" not in config.model.name:
        first, _, rest = config.model.name.partition("_")
        forms = [f"{residual}_{rest}" for residual in ("spiking", "sew")] if first in RESIDUALS else []
        return [(name, 0) for name in forms if name in known] or [(config.model.name, 0)]
    depths = sorted(
        int(match[1])
        for match in (re.fullmatch(r"spiking_resnet(\d+)", name) for name in known)
        if match and f"sew_resnet{match[1]}" in known
    )
    for i, depth in enumerate(config.analysis.depths):
        if depth not in depths:
            raise ConfigError(f"analysis.depths[{i}] must be one of {', '.join(map(str, depths))}, got {short(depth)}")
    return [(f"{residual}_resnet{depth}", depth) for depth in config.analysis.depths for residual in ("spiking", "sew")]


def _setting(neuron: NeuronConfig) -> Setting:
    sigma = build.neuron_factory(neuron)().surrogate_function
    return Setting.of(neuron.v_threshold, sigma)


def _of_given(given: Opened) -> _Network:
    blocks = _blocks(given)
    node = last_neuron(blocks[-1][1])
    return _Network(given.config, 0, None, Setting.of(node.v_threshold, node.surrogate_function))


def _blocks(opened: Opened) -> list:
    blocks = blocks_of(opened.model)
    if not blocks:
        raise ConfigError(
            f"model.name: {opened.config.model.name} has no residual blocks, at which gradients are measured"
        )
    return blocks


# ---- the measurement


def _measure(config: Config, networks: list[_Network], given: Opened | None) -> list[Pass]:
    """Measures every network for every seed. One network exists at a time."""
    passes = []
    seeds = range(config.seed, config.seed + config.analysis.seeds)
    with Bar(total=len(seeds) * len(networks), desc="gradients", unit="network", leave=False) as bar:
        for seed in seeds:
            batches, data = None, None
            for network in networks:
                of_seed = copy.deepcopy(network.config)
                of_seed.seed = seed
                data = build.build_data(of_seed) if data is None else data
                opened = given._replace(data=data) if given else fresh(of_seed, data)
                if batches is None:  # the same for all networks
                    batches = list(train_batches(opened, max(config.analysis.batches, 1)))
                with as_user_error(opened):
                    found = [gradient_norms(opened.model, x, y) for x, y in batches]
                merged, predicted = _mean(found)
                passes.append(
                    Pass(
                        model=of_seed.model.name,
                        label=_label(merged[0].residual, of_seed),
                        depth=network.depth or len(merged),
                        zero_init=network.zero_init,
                        setting=network.setting,
                        seed=seed,
                        blocks=merged,
                        predicted=predicted,
                    )
                )
                del opened, found  # before the next network is built
                bar.update()
    return passes


def _label(residual: str, config: Config) -> str:
    return f"SEW {config.model.connect_f}" if residual == "sew" else residual.capitalize()


def _mean(found: list[list[BlockGradient]]) -> tuple[list[BlockGradient], list[float | None]]:
    """Joins the results of several batches: root mean square of norms and predictions, mean of rates."""
    merged = []
    for of_block in zip(*found, strict=True):
        same = all(one.factors == of_block[0].factors for one in of_block)
        merged.append(
            of_block[0]._replace(
                rate=sum(one.rate for one in of_block) / len(of_block),
                norm=_rms([one.norm for one in of_block]),
                norm_output=_rms([one.norm_output for one in of_block]),
                factors=of_block[0].factors if same else None,
                element_wise=_rms([one.element_wise for one in of_block]),
            )
        )
    return merged, [_rms(of_block) for of_block in zip(*map(predicted_norms, found), strict=True)]


def _rms(values) -> float | None:
    return None if None in values else (sum(value**2 for value in values) / len(values)) ** 0.5


# ---- the report


def _write(report: Report, config: Config, passes: list[Pass]) -> None:
    deepest = max(p.depth for p in passes)
    for zero_init, name in ((True, "zero-init"), (False, "default"), (None, "blocks")):
        shown = [p for p in passes if p.depth == deepest and p.zero_init is zero_init]
        if shown:
            add_blocks(report, name, shown)
    if len({p.depth for p in passes}) > 1:
        add_depths(report, passes)
    add_findings(report, passes, config.model.T)
    report.table("blocks", _COLUMNS, [row for p in passes for row in _rows(p)])


def _rows(p: Pass) -> list[dict]:
    return [
        {
            "model": p.model,
            "depth": p.depth,
            "residual": block.residual,
            "zero_init": None if p.zero_init is None else int(p.zero_init),
            "v_threshold": p.setting.v_threshold,
            "alpha": p.setting.alpha,
            "seed": p.seed,
            "block": i + 1,
            "name": block.name,
            "downsample": int(block.downsample),
            "rate": block.rate,
            "elements": block.elements,
            "norm": block.norm,
            "norm_output": block.norm_output,
            "predicted": predicted,
            "element_wise": block.element_wise,
        }
        for i, (block, predicted) in enumerate(zip(p.blocks, p.predicted, strict=True))
    ]
