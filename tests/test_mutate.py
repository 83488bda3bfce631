"""The faults that ``scripts/mutate.py`` plants."""

from scripts import mutate

SOURCE = '''"""1 < 2, True."""

LEAST = 3


def f(self, x: int = 0, *rest) -> None:
    """x + 1"""
    if x < LEAST and rest:
        self.seen = "é" + g(x, strict=True, size=2)
    if x == 4:
        say(5)
        raise ValueError(f"{x + 6}", 7)
    h()
    return x * 8
'''
EDITS = [
    (3, "3", "4"),
    (6, "0", "1"),
    (8, "x < LEAST", "(x <= LEAST)"),
    (8, "x < LEAST and rest", "(not (x < LEAST and rest))"),
    (8, "x < LEAST and rest", "(x < LEAST or rest)"),
    (9, "2", "3"),
    (9, "g(x, strict=True, size=2)", "g(x, strict=True)"),
    (9, 'self.seen = "é" + g(x, strict=True, size=2)', "pass"),
    (10, "4", "5"),
    (10, "x == 4", "(x != 4)"),
    (13, "h()", "pass"),
    (14, "8", "9"),
    (14, "return x * 8", "return None"),
    (14, "x * 8", "(x / 8)"),
]


def test_faults_are_edits_of_code_and_not_of_text(tmp_path):
    """Each fault is one edit at the right place, also after letters of two bytes."""
    file = tmp_path / "module.py"
    file.write_text(SOURCE, encoding="utf-8")
    found = list(mutate.mutants(file))
    assert sorted((line, before, after) for line, _, before, after, _ in found) == EDITS
    for line, lines, before, after, source in found:
        old, new = SOURCE.splitlines()[line - 1], source.splitlines()[line - 1]
        assert new == old.replace(before, after, 1) and source.replace(new, old) == SOURCE
        assert (lines is None) == (line == 3) and (lines is None or line in lines)
