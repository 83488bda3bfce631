"""Configuration files: nothing is silently dropped or misread, and every invalid file is refused quickly."""

import os
import time

import pytest

from sewsnn.cli import main
from sewsnn.errors import ConfigError
from sewsnn.train.yaml_text import parse_yaml, read_yaml

# 243 bytes that expand to 9 ** 7 values, and merge keys that expand to 5 ** 29.
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcde", "bcdef", strict=True)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 5)}]}}\n" for i in range(1, 30))


@pytest.mark.parametrize(
    "text, key, lines",
    [
        ("seed: 1\nname: x\nseed: 2\n", "seed", "lines 1 and 3"),
        ("optimizer:\n  lr: 1\n  'lr': 2\n", "lr", "lines 2 and 3"),
        ("optimizer: {lr: 1}\nmodel: {T: 1}\noptimizer: {lr: 2}", "optimizer", "lines 1 and 3"),
        ("model: {neuron: {tau: 1, tau: 1}}", "tau", "in line 1"),
        ("model:\n  neuron: &n {tau: 2}\n  last_neuron:\n    <<: *n\n    <<: *n", "<<", "lines 4 and 5"),
        ("a: [{b: 1}, {b: 1,\n b: 2}]", "b", "lines 1 and 2"),
        ("&k seed: 1\n*k : 2", "seed", "in line 1"),
    ],
)
def test_a_key_that_stands_twice(text, key, lines):
    with pytest.raises(ConfigError, match=f"F, line .*the key '{key}' occurs twice, .*{lines}"):
        parse_yaml(text, "F")


def test_anchors_and_merge_keys_are_kept():
    text = "model:\n  neuron: &n {tau: 2, type: LIF}\n  last_neuron: {<<: *n, tau: 3}\n  other: *n"
    model = parse_yaml(text, "F")["model"]
    assert model["last_neuron"] == {"tau": 3, "type": "LIF"} and model["other"] == model["neuron"]


@pytest.mark.parametrize(
    "text, message",
    [
        (LAUGHS, "line 5: more than 10,000 values"),
        (MERGES, "more than 10,000 values"),
        ("[" * 3000, "more than 32 levels"),
        ("{a: " * 3000, "more than 32 levels"),
        ("- " * 3000, "more than 32 levels"),
        ("a: &a [*a]", "inside the value that it refers to"),
        ("a: &a {b: {c: *a}}", "inside the value that it refers to"),
        ("[" + "1," * 100_000 + "1]", "more than 10,000 values"),
        ("1: 2", "a key must be text, got '1'"),
        ("null: 3", "a key must be text, got 'null'"),
        ("on: 3", "a key must be text, got 'on'"),
        ("[a]: 3", "a key must be text"),
        ("a: " + "9" * 5000, "cannot be read as !!int"),
        ("a: !!timestamp 2020-13-45", "!!timestamp is not supported here"),
        ("a: !!set {x}", "!!set is not supported here"),
        ("a: !!binary x", "!!binary is not supported here"),
        ("a: !!python/object/apply:os.system [ls]", "is not supported here"),
        ("a: !!int x", "not a plain whole number"),
        ("a: !!bool x", "cannot be read as !!bool"),
        ("seed: 010", "'010' is not a plain whole number"),
        ("epochs: 1:30", "'1:30' is not a plain whole number"),
        ("lr: 1:30.5", "base 60"),
        ("a: 1\n\tb: 2", "is not a YAML file: line 2: "),
        ("a: [", "is not a YAML file: line 1: "),
        ("a: 1\n---\nb: 2", "is not a YAML file: line 2: "),
        ("a: *" + "z" * 9999, "undefined alias"),
        ('a: "\\UFFFFFFFF"', "is not a YAML file"),
        ("a: \0", "line 1: character 0x0 is not allowed"),
    ],
    ids=range(28),
)
def test_one_short_line_at_once(text, message):
    start = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "F")
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["2020-01-01", "2020-13-45", "=", "08"])
def test_what_stays_text(text):
    assert parse_yaml(f"name: {text}", "F") == {"name": text}


@pytest.mark.parametrize(
    "content, message",
    [
        ("name: ü".encode("utf-16"), "UTF-16 text"),
        (b"name: x\nroot: \xff", "not UTF-8 text (line 2)"),
        (b"\x80\x05" * 99, "not UTF-8 text"),
        (b"#" * (2**20 + 1), "longer than 1,048,576 bytes"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, message, capsys):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    assert main(["train", str(path)]) == 1
    assert message in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_only_regular_files(tmp_path):
    """The reader does not wait for a FIFO and skips a byte order mark."""
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfname: x")
    assert read_yaml(tmp_path / "bom.yaml") == {"name": "x"}
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", ".", "none", "a\0b", "x" * 300):
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            read_yaml(tmp_path / name)


def test_the_configuration_of_a_run_is_read_so_too(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("seed: 1\nseed: 2\n")
    assert main(["eval", str(tmp_path)]) == 1
    assert "the key 'seed' occurs twice, in lines 1 and 2" in capsys.readouterr().err
