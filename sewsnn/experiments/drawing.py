"""The style of the figures of reports: one column of a journal wide, readable in print and for colour-blind readers."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sewsnn.errors import UserError

COLUMN, PAGE = 3.35, 6.9  #: width of a figure of one column, and of the whole page, in inches


class Mark(NamedTuple):
    """How a series is drawn. Colour, line and marker all differ, so that each alone tells the series apart."""

    color: str
    marker: str
    linestyle: str

    def line(self, **more) -> dict:
        """Keyword arguments for ``axes.plot``."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle, **more}


#: The colours of Okabe and Ito, which colour-blind readers can tell apart, from dark to light.
MARKS = (
    Mark("#0072B2", "o", "-"),
    Mark("#D55E00", "s", "--"),
    Mark("#009E73", "^", "-."),
    Mark("#CC79A7", "D", ":"),
    Mark("#E69F00", "v", (0, (5, 1, 1, 1, 1, 1))),
    Mark("#56B4E9", "P", (0, (3, 1))),
    Mark("#000000", "X", (0, (1, 1))),
)

_STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "legend.frameon": False,
    "svg.hashsalt": "sewsnn",  # the same figure gives the same file
    "savefig.dpi": 300,
}


@contextlib.contextmanager
def drawing(rows: int = 1, columns: int = 1, *, width: float = COLUMN, height: float = 2.2, **options) -> Iterator:
    """Yields ``(figure, axes)`` in the style of the reports; ``axes`` is always a 2-D array.

    Draw inside the context, and give the figure to :meth:`sewsnn.experiments.report.Report.figure` there.

    Args:
        rows, columns: number of panels. Default 1.
        width: width in inches. Default: one column, 3.35 inches.
        height: height in inches. Default 2.2.
        options: further arguments of ``Figure.subplots``, such as ``sharey``.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'sewsnn[train]'") from None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def line_with_band(panel, x: Sequence[float], middle: Sequence[float], low: Sequence[float], high: Sequence[float],
                   mark: Mark, **line) -> None:  # fmt: skip
    """Draws a line, and a band of its colour from ``low`` to ``high`` if they differ anywhere.

    Args:
        panel: the axes.
        x: positions.
        middle, low, high: values at each position, for example mean, least and greatest over the seeds; NaN: none.
        mark: how the line is drawn.
        line: further arguments of ``axes.plot``, such as ``label``.
    """
    panel.plot(x, middle, **mark.line(**line))
    if any(a < b for a, b in zip(low, high, strict=True)):
        panel.fill_between(x, low, high, color=mark.color, alpha=0.2, linewidth=0)


def rendered(figure, form: str) -> bytes:
    """Returns the figure as a file in the format ``png`` or ``svg``, without the date."""
    file = io.BytesIO()
    figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else {"Software": None})
    return file.getvalue()
