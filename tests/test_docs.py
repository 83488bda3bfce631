"""docs/models.md: its tables and drawings are up to date, and its code runs."""

import inspect
import json
import re
import typing
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from docs import drawings, tables
from sewsnn import models
from sewsnn.analysis import count_operations
from sewsnn.train.config import Config, from_dict, keys
from sewsnn.train.schema import AT_LEAST, AT_MOST
from sewsnn.train.typed import section_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_tables_are_counted():
    assert tables.filled(PAGE) == PAGE, f"docs/models.md is not up to date: {tables.COMMAND}"


def test_drawings_are_drawn():
    assert drawings.stale() == [], f"docs/images is not up to date: {drawings.COMMAND}"


def test_drawings_stay_on_their_paper():
    """The drawings are well-formed XML, and every box is inside the sheet."""
    for text in drawings.drawings().values():
        root = ElementTree.fromstring(text)
        width, height = (float(root.get(side)) for side in ("width", "height"))
        boxes = root.findall("{http://www.w3.org/2000/svg}rect")
        assert len(boxes) > 20
        for box in boxes:
            x, y, w, h = (float(box.get(name, 0)) for name in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height


def test_code_runs():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    assert names["steps"].shape == (8, 2, 1000) and names["logits"].shape == (1, 11)
    assert names["found"].synops > 0 and names["found"].parameters == 186_858


def test_files_it_names_exist():
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert len(targets) >= 3
    for target in targets:
        assert (ROOT / "docs" / target).exists(), target


def test_every_argument_is_documented():
    for network in (models.SEWResNet, models.PooledNet):
        for name in inspect.signature(network).parameters:
            assert f"`{name}`" in PAGE or f'`{name}="' in PAGE or name == "block", name


@pytest.mark.parametrize("name", ["sew_resnet", "spiking_7b_net", "sew_wide_7b_net", "sew_cifar10_net"])
def test_the_layers_called_spike_fed_are(name):
    """The two layers that do not read spikes are those of a run on real-valued images."""
    torch.manual_seed(0)
    net = models.create_model(name, widths=[4, 8], blocks=[1, 1])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.5, 2)  # none is silent
    channels = next(m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d))
    found = count_operations(net, torch.rand(2, channels, 16, 16))
    real = tuple(layer.name for layer in found.layers if layer.spike_input is False)
    assert real == tables.real_layers(found)


def test_configuration_page_lists_every_key():
    """docs/configuration.md has one table row per key, with its choices, limits and default."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| `(.*?)` \| .+ \|$", page, re.MULTILINE)
    one_row = "model.last_neuron"  # for the whole section, which has the keys of model.neuron
    expected = {key if not key.startswith(one_row) else one_row for key in keys()}
    assert len(rows) == len(expected) and {key for key, _, _ in rows} == expected
    for key, values, default in rows:
        value, hint = from_dict({}), Config
        for name in key.split("."):
            value, hint = getattr(value, name), typing.get_type_hints(section_of(hint))[name]
        assert default.strip('"') == json.dumps(value).strip('"'), key
        literals = "" if isinstance(hint, type) else str(hint)  # Literal['sgd', 'adamw']
        choices = [f"`{choice}`" for choice in re.findall(r"'([\w-]+)'", literals)]
        limits = [f"{limit[key]:,}" for limit in (AT_LEAST, AT_MOST) if key in limit]
        assert all(part in values for part in choices + limits), key
