"""What is seen in the gradients of ``sewsnn analyze gradients``, decided by the measured norms."""

import math
from collections.abc import Sequence

from sewsnn.experiments.gradient_figures import Pass, Spread, quotient, settings_of
from sewsnn.experiments.report import Report, percent

_FITS = 0.1  # a prediction holds if its largest relative difference is at most this
_FLAT = 1e-4  # rounding of float32 in the gradient: about 2e-7 for each of the up to 35 blocks of a stage
_NAMED = 5  # norms that a report names one by one


def add_findings(report: Report, passes: Sequence[Pass], T: int) -> None:
    """Adds the findings for the deepest networks, the quality of the prediction and the norms that were left out.

    Args:
        report: the report.
        passes: all networks and seeds.
        T: number of time-steps.
    """
    deepest = max(p.depth for p in passes)
    spiking = [p for p in passes if p.depth == deepest and p.label == "Spiking" and p.zero_init is not None]
    sew = [p for p in passes if p.depth == deepest and p.label.startswith("SEW") and p.zero_init is not None]
    for setting in settings_of(spiking):
        for zero_init in (True, False):
            _add_direction(report, [p for p in spiking if p.setting == setting and p.zero_init is zero_init])
    if sew:
        _add_flat(report, [p for p in sew if p.zero_init], [p for p in sew if not p.zero_init])
    if spiking and sew:
        _add_comparison(report, spiking, sew)
    predicted = [p for p in passes if p.label == "Spiking" and any(x is not None for x in p.predicted)]
    if predicted:
        _add_prediction(report, predicted, T)
    elif any(p.zero_init for p in passes):
        report.say(
            "Nothing is predicted for Spiking blocks: no block hands on its spikes unchanged with h = S, as equation "
            "S1 assumes (IF neurons with v_reset = 0 and 0 < V_th <= 1)."
        )
    if any(p.zero_init is None for p in passes):
        report.show(
            ["seed of the batch", "first block / last block"], [[str(p.seed), f"{p.ratio:.3g}"] for p in passes]
        )
    _name_unusable(report, passes)


def _range(values: Sequence[float]) -> str:
    s = Spread.of(values)
    if math.isnan(s.mean):
        return "not a number"
    return f"{s.mean:.3g}" + (f" (seeds: {s.low:.3g} to {s.high:.3g})" if len(values) > 1 else "")


def _add_direction(report: Report, passes: Sequence[Pass]) -> None:
    """Whether the norm decays or grows towards the input, as Theta' at 0 and 1 suggest."""
    if not passes:
        return
    setting, model = passes[0].setting, passes[0].model
    a, b = setting.a, setting.b
    if max(a, b) > 1:
        claim, sign, why = "grow", 1, f"{'a' if a > 1 else 'b'} > 1: they explode"
    elif max(a, b) < 1:
        claim, sign, why = "shrink", -1, "a < 1 and b < 1: they vanish"
    elif min(a, b) < 1:
        claim, sign, why = "shrink", -1, f"{'a' if a < 1 else 'b'} < 1, the other is 1"
    else:
        return
    _add_row(report, passes, claim, sign)
    ratios = [p.ratio for p in passes]
    holds = None if any(map(math.isnan, ratios)) else all(sign * math.log(ratio) > 0 for ratio in ratios)
    state = "with zero_init_residual" if passes[0].zero_init else "as initialised by default"
    evidence = f"the norm at the first block divided by that at the last is {_range(ratios)}."
    inside = [quotient(first.norm, last.norm_output) for p in passes for first, last in _rows_of(p)]
    inside = Spread.of(inside)
    if not math.isnan(inside.mean):
        evidence += (
            f" Within a row of identity blocks, ||dL/dS|| at its start is {inside.low:.3g} to {inside.high:.3g} times "
            "||dL/dO|| at its end; what lies between the rows (downsample blocks; in event networks also poolings) "
            "does the rest."
        )
    if holds is False:
        evidence += " " + _why_not(passes, sign)
    report.find(
        f"Towards the input of {model}, {state}, gradients {claim} for {setting.words()} (a = {a:.3g}, b = "
        f"{b:.3g}; {why}).",
        holds,
        evidence,
    )


def _add_row(report: Report, passes: Sequence[Pass], claim: str, sign: int) -> None:
    """Whether the norm decays or grows over the longest row of identity blocks, which is what equation S4 describes."""
    longest = [
        max(_rows_of(p), key=lambda row: p.blocks.index(row[1]) - p.blocks.index(row[0]), default=None) for p in passes
    ]
    if None in longest:
        return
    ratios = [quotient(first.norm, last.norm_output) for first, last in longest]
    blocks = passes[0].blocks
    k = blocks.index(longest[0][1]) - blocks.index(longest[0][0]) + 1
    report.find(
        f"Over the longest row of identity blocks of {passes[0].model} ({k} blocks), gradients {claim} towards the "
        f"input for {passes[0].setting.words()} (equation S4).",
        None if any(map(math.isnan, ratios)) else all(sign * math.log(ratio) > 0 for ratio in ratios),
        f"||dL/dS|| at its start is {_range(ratios)} times ||dL/dO|| at its end.",
    )


def _why_not(passes: Sequence[Pass], sign: int) -> str:
    if not any(block.factors for p in passes for block in p.blocks):
        return (
            "No block is an identity as equation S1 assumes it, so the gradient also flows in ways that these factors "
            "leave out."
        )
    if len({sign * math.log(p.ratio) > 0 for p in passes}) > 1:
        return "The seeds disagree."
    if passes[0].setting.a == 1:
        return (
            "With a = 1 equation S4 tends to sqrt(Phi) and not to 0: a row takes away a factor that does not grow with "
            "its depth, and here what lies between the rows makes up for it."
        )
    return "What lies between the rows, which equation S4 does not describe, changes the norm the other way."


def _rows_of(p: Pass) -> list[tuple]:
    """First and last block of each row of identity blocks."""
    rows: list[tuple] = []
    for i, block in enumerate(p.blocks):
        if block.factors is None:
            continue
        goes_on = i > 0 and block.follows and p.blocks[i - 1].factors is not None
        if goes_on:
            rows[-1] = (rows[-1][0], block)
        else:
            rows.append((block, block))
    return rows


def _add_flat(report: Report, identity: Sequence[Pass], default: Sequence[Pass]) -> None:
    def spread_of_stage(p: Pass, by_factors: bool) -> float:
        stages: list[list[float]] = [[]]
        for block in p.blocks:
            if block.downsample or not block.follows or (by_factors and block.factors is None):
                stages.append([])
            if not block.downsample and (block.factors is not None or not by_factors):
                stages[-1].append(block.norm)
        return max((quotient(max(norms), min(norms)) for norms in stages if len(norms) > 1), default=math.nan)

    if identity and any(block.factors for p in identity for block in p.blocks):
        ratios = [r for r in (spread_of_stage(p, True) for p in identity) if not math.isnan(r)]
        evidence = "no stage has two identity blocks to compare."
        if ratios:
            evidence = (
                f"for all settings and seeds they are equal to {max(ratios) - 1:.1e} of the norm."
                if max(ratios) > 1
                else "for all settings and seeds they are the same number."
            )
        report.find(
            f"In {identity[0].model} with zero_init_residual the norm is the same at all blocks of a stage (equation "
            "9 of the main paper).",
            max(ratios) - 1 <= _FLAT if ratios else None,
            evidence,
        )
    ratios = [r for r in (spread_of_stage(p, False) for p in default) if not math.isnan(r)]
    if ratios:
        report.say(
            f"{default[0].model} as initialised by default has no identity blocks, and equation 9 does not apply: the "
            f"greatest norm of a stage is up to {max(ratios):.3g} times its least."
        )


def _add_comparison(report: Report, spiking: Sequence[Pass], sew: Sequence[Pass]) -> None:
    """For each setting, whether SEW keeps the norm closer to constant than Spiking with the same seed and init."""
    for setting in settings_of(spiking):
        of_setting = [[p for p in passes if p.setting == setting] for passes in (spiking, sew)]
        other = {(p.zero_init, p.seed): p.ratio for p in of_setting[1]}
        pairs = [(other[p.zero_init, p.seed], p.ratio) for p in of_setting[0]]
        closer = [abs(math.log(in_sew)) < abs(math.log(in_spiking)) for in_sew, in_spiking in pairs]
        ratios = [
            f"{'with zero_init_residual' if zero_init else 'by default'} "
            + ", ".join(
                f"{_range([p.ratio for p in passes if p.zero_init is zero_init])} in {passes[0].label}"
                for passes in of_setting
            )
            for zero_init in (True, False)
        ]
        report.find(
            f"The norm changes less from the last block to the first in {sew[0].model} than in {spiking[0].model} for "
            f"{setting.words()}.",
            None if any(math.isnan(ratio) for pair in pairs for ratio in pair) else all(closer),
            f"that is so for {sum(closer)} of {len(pairs)} pairs of networks with the same seed and initialisation. "
            f"The norm at the first block divided by that at the last is {'; '.join(ratios)}.",
        )


def _add_prediction(report: Report, passes: Sequence[Pass], T: int) -> None:
    """How well equation S4, and equations S1 to S3 element by element, give the measured norms."""
    rows, worst, worst_exact = [], (0.0, ""), 0.0
    for setting in settings_of(passes):
        of_setting = [p for p in passes if p.setting == setting]
        off, exact = (0.0, ""), 0.0
        for p in of_setting:
            for block, predicted in zip(p.blocks, p.predicted, strict=True):
                if predicted is None or not 0 < block.norm < math.inf:
                    continue
                difference = abs(predicted / block.norm - 1)
                where = f"{p.model}, {setting.words()}, seed {p.seed}, {block.name}: {block.norm:.3g} measured, "
                off = max(off, (difference, f"{where}{predicted:.3g} predicted"))
                exact = max(exact, abs(block.element_wise / block.norm - 1))
        worst, worst_exact = max(worst, off), max(worst_exact, exact)
        rows.append([setting.words(), f"{setting.a:.4g}", f"{setting.b:.4g}", percent(off[0]), f"{exact:.1e}"])
    reason = "The equation assumes that dL/dO does not depend on whether a neuron fired."
    if T > 1:
        reason = (
            f"For T = {T} the equation leaves out a path: the membrane potential of a neuron that is silent at t "
            "carries gradient from t + 1 back to t, in every block anew. It also assumes that dL/dO does not depend on "
            "whether a neuron fired. --model.T 1 shows the second alone."
        )
    report.find(
        f"Equation S4 gives the norms within the stages of Spiking networks to {_FITS:.0%}, for T = {T}.",
        worst[0] <= _FITS,
        f"the largest relative difference is {percent(worst[0])} of the measured norm ({worst[1]}). {reason}",
    )
    report.find(
        "Equations S1 to S3 hold element by element"
        + (", with the gradient through the membrane potential added." if T > 1 else "."),
        worst_exact <= _FLAT,
        f"from the same dL/dO at the end of the stage, they give the norm to {worst_exact:.1e} of it (float32).",
    )
    report.say(
        "Largest relative difference between prediction and measurement within the stages of Spiking networks, over "
        "all depths, blocks and seeds. Element by element: equations S1 to S3 applied to the measured dL/dO at the end "
        "of the stage, with the path through the membrane potential."
    )
    report.show(["setting", "a", "b", "equation S4", "element by element"], rows)


def _name_unusable(report: Report, passes: Sequence[Pass]) -> None:
    """Names the norms that a logarithmic axis cannot show."""
    found = [
        f"{p.model}, {p.setting.words()}{_init_in_words(p)}, seed {p.seed}, {block.name}: {block.norm:g}"
        for p in passes
        for block in p.blocks
        if not 0 < block.norm < math.inf
    ]
    if found:
        more = f", and {len(found) - _NAMED} more (see the data file)" if len(found) > _NAMED else ""
        report.say(
            f"{len(found)} norms are 0 or not finite in float32, and the figures leave them out: "
            f"{'; '.join(found[:_NAMED])}{more}."
        )


def _init_in_words(p: Pass) -> str:
    return {True: ", zero init", False: ", default", None: ""}[p.zero_init]
