"""docs/paper.md shows the reports in docs/paper/, and these agree with the data beside them."""

import csv
import re
import statistics

import pytest

from docs import analyses

NAMES = ("rtd", "functions", "rates", "gradients", "surrogates", "membrane")


def test_the_page_is_up_to_date():
    page = analyses.PAGE.read_text(encoding="utf-8")
    assert analyses.filled(page) == page, f"docs/paper.md is not up to date: {analyses.COMMAND}"


@pytest.mark.parametrize("name", NAMES)
def test_files_of_a_report_are_there(name):
    """All that it links to, and no other file of that report."""
    linked = {link for link in re.findall(r"\]\(([^)#]+)\)", analyses.report(name)) if "://" not in link}
    assert linked == {path.name for path in analyses.REPORTS.glob(f"{name}-*")}
    command = re.search(r"^- command: `sewsnn analyze (\w+) ", analyses.report(name), re.MULTILINE)
    assert command[1] == name and ", generated" not in analyses.report(name)


def rows(name):
    with open(analyses.REPORTS / f"{name}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def last_epochs(data, *labels):
    """Label -> test accuracies of the last epoch of the runs that did not diverge."""
    last = {}
    for row in data:
        key = tuple(row[label] for label in labels)
        last[key, row["seed"]] = row
    found = {}
    for (key, _), row in last.items():
        found.setdefault(key, []).extend([float(row["test_accuracy"])] if row["diverged"] == "0" else [])
    return found


def in_words(values):
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread} %"


def test_accuracies_are_those_of_the_epochs():
    found = last_epochs(rows("functions-epochs"), "network")
    table = cells(analyses.table("functions"))
    assert [row[0] for row in table] == ["ADD", "AND", "IAND", "Spiking", "Plain"]
    for row in table:
        assert row[3] == in_words(found[(row[0],)])
    found = last_epochs(rows("rtd-epochs"), "network", "rtd")
    for row in cells(analyses.table("rtd")):
        form, _, side = row[0].partition(" ")
        assert row[3] == in_words(found[form, "1" if side == "with RTD" else "0"])


def test_surrogates_have_their_best_learning_rate():
    data = rows("surrogates-epochs")
    found = last_epochs(data, "network", "surrogate", "learning_rate")
    for row in cells(analyses.table("surrogates")):
        network, _, name = row[0].partition(", ")
        tried = {rate: values for (n, s, rate), values in found.items() if (n, s) == (network, name)}
        assert len(tried) == 5
        most = max(len(values) for values in tried.values())
        means = {rate: statistics.fmean(values) for rate, values in tried.items() if len(values) == most and values}
        if means:
            assert means[next(rate for rate in means if f"{float(rate):g}" == row[1])] == max(means.values())
            assert row[3].startswith(in_words(tried[max(means, key=means.get)]))
        else:
            assert row[3] == "diverged"


def test_rates_are_those_of_the_runs():
    """The report of rates measures runs whose rates the report of functions shows, too."""
    of_functions = {(row["network"], row["seed"], row["block"]): row for row in rows("functions-blocks")}
    of_rates = {(row["network"], row["seed"], row["block"]): row for row in rows("rates-blocks")}
    assert of_rates.items() <= of_functions.items() and len(of_rates) == 3 * 7
