"""The configuration: dataclass < YAML < command line."""

import dataclasses
from pathlib import Path

import pytest

from sewsnn import surrogate
from sewsnn.cli import parse_overrides
from sewsnn.data.source import Options
from sewsnn.errors import ConfigError
from sewsnn.train.config import Config, differences, from_dict, keys, load_config
from sewsnn.train.schema import DataConfig, ModelConfig, NeuronConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))


def write(folder, text):
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def load(path, overrides=()):
    """The required keys may be on the command line instead of in the file."""
    return load_config(path, {"data.name": "digits", "model.name": "sew_resnet18", **dict(overrides)})


def test_order_of_precedence(tmp_path):
    path = write(tmp_path, "seed: 7\nmodel: {T: 8}\noptimizer: {lr: 1e-3}\n")
    config = load(path, parse_overrides(["--model.T", "16", "--momentum=0.5", "--v_reset", "null", "--seed", "3"]))
    assert (config.model.T, config.seed, config.optimizer.lr, config.optimizer.momentum) == (16, 3, 0.001, 0.5)
    assert config.model.neuron.v_reset is None and config.train.epochs == Config().train.epochs


def test_round_trip():
    config = from_dict({"model": {"blocks": [1, 2], "widths": [3, 4], "name": "sew_resnet"}})
    assert from_dict(config.to_dict()) == config
    assert differences(config.to_dict(), {**config.to_dict(), "seed": 1}) == ["seed"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configurations_load(path):
    load_config(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("optimzer: {lr: 1}", "unknown key 'optimzer'; the nearest is 'optimizer"),
        ("optimizer: {learning: 1}", "unknown key 'optimizer.learning'"),
        ("model: {neuron: {tua: 2}}", "unknown key 'model.neuron.tua'; the nearest is 'model.neuron.tau'"),
        ("lr: 0.1", "unknown key 'lr'; the nearest is 'optimizer.lr'"),
        ("train: {epochs: ten}", "train.epochs must be int, got 'ten'"),
        ("train: {epochs: 2.5}", "train.epochs must be int, got 2.5"),
        ("train: {epochs: true}", "train.epochs must be int, got True"),
        ("optimizer: {lr: fast}", "optimizer.lr must be float, got 'fast'"),
        ("optimizer: {lr: null}", "optimizer.lr must be float, got None"),
        ("model: {blocks: 3}", r"model.blocks must be list of int, got 3"),
        ("model: {blocks: [1, x]}", r"model.blocks\[1\] must be int, got 'x'"),
        ("model: {connect_f: OR}", "model.connect_f must be one of 'ADD', 'AND', 'IAND', got 'OR'"),
        ("model: 3", "model must be a mapping"),
        ("[1, 2]", "the file must be a mapping"),
        ("a: [", "is not a YAML file"),
        ("train: {epochs: 0}", "train.epochs must be at least 1, got 0"),
        ("schedule: {gamma: -1}", "schedule.gamma must be at least 0, got -1"),
        ("seed: 9223372036854775808", "seed must be at most 9223372036854775807, got 9223372036854775808"),
        ("optimizer: {lr: .inf}", "optimizer.lr must be finite, got inf"),
        ("optimizer: {lr: .nan}", "optimizer.lr must be at least 0, got nan"),
        ("data: {T_train: 5}", "data.T_train must be at most model.T .4., got 5"),
        ("model: {name: sew_resnet}", "model.blocks and model.widths must be set"),
        ("model: {name: sew_resnet, blocks: [1, 1], widths: [4]}", "one entry per stage"),
    ],
)
def test_bad_file(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--optimizer.lrr", "1"], "unknown key 'optimizer.lrr'; the nearest is 'optimizer.lr'"),
        (["--epochz", "1"], "unknown key 'epochz'; the nearest is 'epochs'"),
        (["--name", "x", "--batch_size", "big"], "data.batch_size must be int, got 'big'"),
        (["--T"], "--T needs a value"),
        (["T", "4"], "expected --key value, got 'T'"),
    ],
)
def test_bad_command_line(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, ""), parse_overrides(words))


def test_ambiguous_key(tmp_path):
    """Only one key ends in `tau`; several end in `name`, which is also a key itself."""
    assert load(write(tmp_path, ""), {"name": "mine"}).name == "mine"
    assert load(write(tmp_path, ""), {"tau": "3"}).model.neuron.tau == 3.0
    assert len([k for k in keys() if k.endswith(".name")]) > 1


def test_a_section_that_may_be_null(tmp_path):
    """model.last_neuron: null, or a section; on the command line its keys make it, by their whole name only."""
    empty = write(tmp_path, "model: {last_neuron: null}")
    assert load(empty).model.last_neuron is None
    config = load(empty, {"tau": "4", "model.last_neuron.v_threshold": "0.5"})
    assert (config.model.last_neuron.v_threshold, config.model.neuron.tau) == (0.5, 4.0)
    assert from_dict(config.to_dict()) == config
    given = write(tmp_path, "model: {last_neuron: {surrogate: UnitATan}}")
    assert load(given).model.last_neuron.surrogate == "UnitATan"
    with pytest.raises(
        ConfigError, match=r"--tau is ambiguous: it matches model\.neuron\.tau, model\.last_neuron\.tau"
    ):
        load(given, {"tau": "4"})
    with pytest.raises(ConfigError, match=r"unknown key 'model\.last_neuron\.tua'"):
        load(write(tmp_path, "model: {last_neuron: {tua: 3}}"))


@pytest.mark.parametrize(
    "key, value, kept",
    [
        ("name", "mine", True),
        ("root", "/data", True),
        ("device", "cpu", True),
        ("published.source", "me", True),
        ("connect_f", "AND", False),
        ("epochs", "3", False),
        ("lr", "0.5", False),
        ("batch_size", "8", False),
    ],
)
def test_another_experiment_has_no_published_result(tmp_path, key, value, kept):
    text = "published: {test_accuracy: 97.9, source: paper}"
    config = load(write(tmp_path, text), {key: value})
    assert config.published.test_accuracy == (97.9 if kept else None)


@pytest.mark.parametrize("name", [n for n in surrogate.__all__ if n != "Surrogate"])
def test_surrogates_keep_their_own_default(tmp_path, name):
    from sewsnn.train.build import neuron_factory

    config = load(write(tmp_path, ""), {"surrogate": name})
    assert neuron_factory(config.model.neuron)().surrogate_function == getattr(surrogate, name)()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "null", "seed: 3\nmodel: {T: 2}"])
def test_a_configuration_names_its_data_set_and_its_model(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=r"c\.yaml does not set data\.name and model\.name: .*digits"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"does not set model\.name"):
        load_config(path, {"data.name": "digits"})
    with pytest.raises(ConfigError, match=r"does not set data\.name"):
        load_config(path, {"model": "{name: sew_resnet18}"})
    assert load(path).model.name == "sew_resnet18"


LIMITS = {
    "data.batch_size": 10**9,
    "data.workers": 10**9,
    "data.image_size": 10**9,
    "model.T": 10**25,
    "optimizer.lr": "1e300",
    "optimizer.momentum": "1e300",
    "optimizer.weight_decay": "1e300",
    "optimizer.clip_norm": "1e300",
    "schedule.gamma": "1e300",
    "schedule.final": "1e300",
    "schedule.step_size": 10**25,
    "loss.mixup": "1e300",
    "loss.tet_target": "1e300",
    "train.epochs": 10**25,
    "train.accumulate": 10**25,
    "train.keep": 10**25,
    "train.log_steps": 10**25,
    "train.checkpoint_steps": 10**25,
    "train.threads": 3_000_000_000,
    "model.neuron.tau": "1e300",
    "model.neuron.v_threshold": ".nan",
    "model.neuron.v_reset": "-.inf",
    "model.neuron.surrogate_parameter": "1e300",
    "model.stem_kernel": 10**25,
    "seed": 10**25,
}


@pytest.mark.parametrize("key", LIMITS)
def test_numbers_that_nothing_can_hold(tmp_path, key):
    with pytest.raises(ConfigError, match=f"^{key} must be ") as caught:
        load(write(tmp_path, ""), {key: str(LIMITS[key])})
    assert len(str(caught.value)) < 200


def test_every_number_has_a_limit(tmp_path):
    """Every key, including future ones, gives one short line for an integer of 5,000 digits."""
    hex_number = "0x" + "f" * 5000  # Python cannot write it in decimal
    config = Config(model=ModelConfig(last_neuron=NeuronConfig())).to_dict()
    for key in keys():
        value = config
        for part in key.split("."):
            value = value[part]
        if isinstance(value, int | float) and not isinstance(value, bool):
            with pytest.raises(ConfigError, match=rf"{key} must be") as caught:
                load(write(tmp_path, ""), {key: hex_number})
            assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "words, message",
    [
        ({"blocks": "[1000000]", "widths": "[8]"}, r"model.blocks\[0\] must be from 1 to 1024, got 1000000"),
        ({"blocks": "[1, 1]", "widths": "[8, 1000000]"}, r"model.widths\[1\] must be from 1 to 65536"),
        ({"blocks": "[0]", "widths": "[8]"}, r"model.blocks\[0\] must be from 1"),
        ({"blocks": str([1] * 99), "widths": str([8] * 99)}, "model.blocks must have at most 16 entries, got 99"),
        (
            {"schedule.name": "step", "gamma": "10", "step_size": "1", "epochs": "999"},
            "schedule.gamma multiplies the learning rate",
        ),
        ({"schedule.final": "1e20", "lr": "1e20"}, "schedule.final multiplies the learning rate"),
        ({"optimizer.name": "adamw", "weight_decay": "1e20", "lr": "1e20"}, "optimizer.weight_decay .1e.20. times the"),
        ({"name": "a" * 300}, "name must be printable text of 1 to 255 bytes"),
        ({"name": ""}, "--name has an empty value"),
        ({"name": ".."}, "name must be printable text"),
        ({"name": "\udcff"}, "name must be printable text"),
        ({"output": "a" * 300}, r"output must be a path of at most .* \(300 bytes, 300 in its longest name\)"),
        ({"output": ""}, "--output has an empty value; write null"),
        ({"v_reset": ""}, "--model.neuron.v_reset has an empty value"),
        ({"stem": " "}, "--model.stem has an empty value"),
        ({"output": "\udcff"}, "output must be a path in UTF-8"),
        ({"data.root": "a/" * 3000}, "data.root must be a path of at most 4,000 bytes"),
        ({"model.weights": "a\0b"}, "model.weights must be text without a NUL character"),
        ({"data.split": '"a\\0b"'}, "data.split must be text without a NUL character"),
        *(({"device": d}, "train.device must be auto, cpu, cuda or cuda:N") for d in ("meta", "mps", "xpu", "cuda:-1")),
        ({"device": "cuda:" + "9" * 30}, "train.device must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_cannot_work(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(tmp_path, "model: {name: sew_resnet}" if "blocks" in words else ""), words)
    assert "\n" not in str(caught.value)


def test_unknown_names_say_which_there_are_the_nearest_first(tmp_path):
    """The unknown model name is reported before any error about `blocks`."""
    text = "data: {name: digits}\nmodel: {name: sew_resnt, blocks: [1], widths: [8]}"
    with pytest.raises(ConfigError, match=r"model.name: unknown model 'sew_resnt' .*; known: sew_resnet, .*spiking_"):
        load_config(write(tmp_path, text))
    with pytest.raises(ConfigError, match=r"model.connect_f must be one of 'IAND', 'AND', 'ADD', got 'iand'"):
        load(write(tmp_path, ""), {"connect_f": "iand"})
    with pytest.raises(ConfigError, match=r"unknown key 'optimizer.lr'; in a file, write lr below optimizer:"):
        load_config(write(tmp_path, "optimizer.lr: 0.1"))


def test_whole_sections_on_the_command_line(tmp_path):
    given = write(tmp_path, "model: {last_neuron: {type: LIF, tau: 3}}")
    assert load(given, {"model.last_neuron": "null"}).model.last_neuron is None
    for key in ("model.last_neuron", "last_neuron"):
        assert load(given, {key: "{tau: 4}"}).model.last_neuron == NeuronConfig(type="LIF", tau=4.0)
    assert load(write(tmp_path, ""), {"last_neuron": "{type: IF}"}).model.last_neuron == NeuronConfig()
    for words, message in (
        ({"train": "null"}, "train must be a mapping of keys to values, got None"),
        ({"neuron": "3"}, "model.neuron must be a mapping"),
        (
            {"neuron": "{tua: 3}"},
            r"unknown key 'model\.neuron\.tua'; the nearest is 'model\.neuron\.tau'",
        ),
        ({"neuron": "{tau: 3, tau: 4}"}, "the key 'tau' occurs twice"),
        ({"neuron": "{tau: 3}", "model.neuron.tau": "4"}, "--neuron and --model.neuron.tau both set"),
        ({"lr": "1", "optimizer.lr": "1"}, "--lr and --optimizer.lr both set optimizer.lr"),
        ({"neurn": "null"}, "unknown key 'neurn'; the nearest is"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(write(tmp_path, ""), words)


@pytest.mark.parametrize("text", ["run #1", "2020", "on", "2020-01-01", "a: b", "*x", "~user", "null"])
def test_text_of_the_command_line_is_taken_as_it_is(tmp_path, text):
    config = load(write(tmp_path, ""), {"name": text, "output": text + "/x", "data.root": "null"})
    assert (config.name, config.output, config.data.root) == (text, text + "/x", None)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml")


def test_data_sets_are_told_what_the_configuration_says():
    """Every key of ``data`` except two is a field of Options with the same default."""
    options = {f.name: f.default for f in dataclasses.fields(Options)}
    keys = {f.name: f.default for f in dataclasses.fields(DataConfig)}
    for name in keys.keys() - {"name", "T_train", "batch_size"}:
        assert options[name] == keys[name], name
    assert options.keys() - keys.keys() == {"seed", "T", "rank", "world"}
