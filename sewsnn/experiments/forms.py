"""The networks that the paper compares, as changes of one configuration, and what several seeds of each reached."""

import copy
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sewsnn.errors import ConfigError
from sewsnn.experiments.sweep import Cell, Outcome
from sewsnn.models import list_models, load_checkpoint
from sewsnn.train import build
from sewsnn.train.config import Config, PublishedConfig, check
from sewsnn.train.schema import AnalysisConfig

#: the networks of Table S2: the three SEW connections, Spiking ResNet and the plain network
KINDS = ("ADD", "AND", "IAND", "Spiking", "Plain")
RESIDUALS = ("sew", "spiking", "plain")


def form_of(name: str, residual: str) -> str:
    """Returns the name of the SEW, Spiking or plain form of a network.

    Args:
        name: a network whose name begins with ``sew_``, ``spiking_`` or ``plain_``.
        residual: ``"sew"``, ``"spiking"`` or ``"plain"``.

    Raises:
        ConfigError: there is no such network.
    """
    first, _, rest = name.partition("_")
    found = f"{residual}_{rest}"
    if first not in RESIDUALS or found not in list_models():
        has = sorted(
            {n.partition("_")[2] for n in list_models() if f"{residual}_{n.partition('_')[2]}" in list_models()}
        )
        raise ConfigError(
            f"model.name: there is no {residual} form of {name}; there is one of {', '.join(f'sew_{n}' for n in has)}"
        )
    return found


def kind_of(config: Config) -> str:
    """Returns the one of :data:`KINDS` that a configuration describes."""
    residual = config.model.name.partition("_")[0]
    return {"spiking": "Spiking", "plain": "Plain"}.get(residual, config.model.connect_f)


def of_kind(config: Config, kind: str) -> Config:
    """Returns a copy of the configuration for one of :data:`KINDS`, with its learning rate.

    ``zero_init_residual`` is kept only for the kind that the configuration describes: it has another effect in each of
    the others, and can silence them. The published runs differ in it, too.
    """
    found = copied(config)
    found.model.zero_init_residual &= kind == kind_of(config)
    residual = {"Spiking": "spiking", "Plain": "plain"}.get(kind, "sew")
    found.model.name = form_of(config.model.name, residual)
    found.model.connect_f = kind if residual == "sew" else "ADD"
    found.optimizer.lr = getattr(config.analysis.learning_rates, kind)
    return found


def copied(config: Config) -> Config:
    """Returns a copy of the configuration for a run of a sweep: the published result does not belong to it."""
    found = copy.deepcopy(config)
    found.published, found.analysis = PublishedConfig(), AnalysisConfig()
    return found


def with_seeds(name: str, config: Config, seeds: int) -> list[Cell]:
    """Returns a cell for each seed from ``config.seed`` on; its name ends in the seed."""
    cells = []
    for i in range(seeds):
        found = copy.deepcopy(config)
        found.seed += i
        cells.append(Cell(f"{name}-{found.seed}", found))
    return cells


def check_cells(cells: Iterable[Cell]) -> None:
    """Checks every configuration, and that data, networks and initial weights can be used, before any run starts.

    Raises:
        UserError: a setting or a file is wrong; the message names it.
    """
    data, built = {}, set()
    for cell in cells:
        check(cell.config)
        build.choose_device(cell.config.train.device)
        key = str(cell.config.to_dict()["data"] | {"T": cell.config.model.T})
        if key not in data:
            data[key] = build.build_data(cell.config)
        model = str(cell.config.to_dict()["model"])
        if model not in built:
            built.add(model)
            network = build.build_model(cell.config, data[key])
            if cell.config.model.weights:
                load_checkpoint(network, cell.config.model.weights)


class Spread(NamedTuple):
    """Mean and spread of a number over seeds.

    Attributes:
        values: the numbers, one per seed.
        diverged: number of further seeds whose run diverged.
    """

    values: tuple[float, ...]
    diverged: int

    @property
    def mean(self) -> float:
        """The mean; NaN if every run diverged."""
        return statistics.fmean(self.values) if self.values else float("nan")

    @property
    def deviation(self) -> float:
        """The standard deviation of a sample; 0 for one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def percent(self) -> str:
        """``82.6 ± 0.4 %`` for shares in [0, 1]; see :meth:`words`."""
        return self.words(100, ".1f", " %")

    def words(self, factor: float = 1, form: str = ".4f", unit: str = "") -> str:
        """``0.5123 ± 0.0042``: mean and standard deviation times ``factor``, with the number of runs that diverged.
        One value has no deviation."""
        if not self.values:
            return "diverged"
        spread = f" ± {factor * self.deviation:{form}}" if len(self.values) > 1 else ""
        lost = f" ({self.diverged} of {self.diverged + len(self.values)} runs diverged)" if self.diverged else ""
        return f"{factor * self.mean:{form}}{spread}{unit}{lost}"


def spread(outcomes: Sequence[Outcome], name: str = "test_accuracy") -> Spread:
    """Returns mean and spread of a number of the last epoch over the runs that did not diverge.

    Args:
        outcomes: runs that differ in their seed.
        name: a key of :attr:`Outcome.history`, or ``best`` for the test accuracy of the best epoch.
    """
    kept = [o for o in outcomes if not o.diverged]
    values = tuple(o.best if name == "best" else o.history[-1][name] for o in kept)
    return Spread(values, len(outcomes) - len(kept))


#: what :func:`order` does, for a report
ORDER = (
    "how results are compared: by Welch's t-test over the seeds at 5 %; undecided if it finds no difference, if there "
    "is one seed, or if some runs of a network diverged and others did not"
)


def order(low: Spread, high: Spread) -> bool | None:
    """Returns whether ``high`` is above ``low``: True or False if Welch's t-test finds a difference of the means at the
    level 0.05, else None. A network whose runs all diverged is below every other; if only some did, or if there is one
    seed, the result is None."""
    if min(len(found.values) + found.diverged for found in (low, high)) < 2:
        return None
    if any(found.values and found.diverged for found in (low, high)) or not (low.values or high.values):
        return None
    if not low.values or not high.values:
        return bool(high.values)
    if low.deviation == high.deviation == 0:
        return None if high.mean == low.mean else high.mean > low.mean
    from scipy.stats import ttest_ind_from_stats

    of_both = (number for one in (low, high) for number in (one.mean, one.deviation, len(one.values)))
    return high.mean > low.mean if ttest_ind_from_stats(*of_both, equal_var=False).pvalue < 0.05 else None


def network_in_words(config: Config) -> str:
    """The name of the network and, if the configuration gives them, its blocks and channels."""
    model = config.model
    return model.name + (f" (blocks {model.blocks}, widths {model.widths})" if model.blocks else "")


def data_in_words(config: Config) -> str:
    """``digits``, and whether the samples are generated."""
    return config.data.name + (", generated" if config.data.generated else "")


def why_undecided(config: Config) -> str:
    """Why accuracies decide nothing: the samples are generated. Else an empty text."""
    return "The samples are generated, so accuracies have no meaning." if config.data.generated else ""


def seeds_in_words(config: Config) -> str:
    """``3 seeds (2020 to 2022)``."""
    n = config.analysis.seeds
    return f"{n} seeds ({config.seed} to {config.seed + n - 1})" if n > 1 else f"1 seed ({config.seed})"
