"""What `consilium audit` found, as tables and sentences for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from privacy.audit.label_inference import LabelInference
    from simulations.probes.membership import Membership
    from simulations.probes.one_run import OneRunFound


def print_membership(console: Console, found: Membership) -> None:
    """Every attack through every opening, and what the promise bounds them by."""
    from privacy.accounting import round_up
    from privacy.statement import shown_delta

    headings = ("seen", "attack", "AUC", "TPR 1 %", "TPR 0.1 %", "epsilon >")
    table = table_of(headings, left=(0, 1))
    last = ""
    for each in found.found:
        if last and each.seen != last:
            table.add_section()
        least = f"[red]{each.epsilon_low:.2f}[/]" if each.refutes else f"{each.epsilon_low:.2f}"
        table.add_row(
            each.seen if each.seen != last else "",
            each.attack,
            f"{each.auc:.3f} ±{(each.auc_high - each.auc_low) / 2:.3f}".replace("±0", "±"),
            _percents(each.tpr_1, each.tpr_1_low, each.tpr_1_high),
            _percents(each.tpr_01, each.tpr_01_low, each.tpr_01_high),
            least,
        )
        last = each.seen
    console.print(table)
    say(console, "seen: the model itself, or only soft labels on public rows, after what is named was done to them")
    say(
        console,
        f"{found.site}: {found.records} rows, {found.shadows} models, each trained on half of them and attacked in "
        f"turn; accuracy {found.accuracy_in:.1%} on rows that they know, {found.accuracy_out:.1%} on others",
    )
    if found.strangers < 1000:
        say(console, f"of {found.strangers} strangers 0.1 % is less than one: that column counts no false alarm at all")
    if found.epsilon is None or found.most is None:
        say(console, "nothing is promised, so that nothing bounds an attack")
        return
    bound = " and ".join(f"{most:.1%} at {alarms}" for most, alarms in zip(found.most, ("1 %", "0.1 %"), strict=True))
    shown = round_up(found.epsilon)
    verdict = "an attack found more: the promise is refuted" if found.refuted else "no attack found more"
    say(console, f"epsilon {shown:.4f}, delta {shown_delta(found.delta)} allow to find {bound}: {verdict}")


def _percents(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def print_one_run(console: Console, found: OneRunFound) -> None:
    """What the canaries proved, beside the claim."""
    from privacy.accounting import round_up
    from privacy.statement import shown_delta

    told = found.audit
    headings = ("site", "model", "canaries", "guesses", "right", "epsilon at least", "claimed", "most it could show")
    table = table_of(headings, left=(0, 1))
    claimed = "–" if found.epsilon is None else f"{round_up(found.epsilon):.4f}"
    numbers = (told.canaries, told.guesses, told.right)
    least = f"[red]{told.epsilon:.4f}[/]" if found.refuted else f"{told.epsilon:.4f}"
    table.add_row(found.site, found.model, *map(str, numbers), least, claimed, f"{told.ceiling:.4f}")
    console.print(table)
    if found.epsilon is None:
        verdict = f"nothing is promised; no training like this one may claim an epsilon below {told.epsilon:.4f}"
    elif found.refuted:
        verdict = "the claim is refuted"
    else:
        verdict = "the claim stands"
    say(console, f"{verdict} (delta {shown_delta(told.delta)}, {1 - told.significance:.0%})")


def print_labels(console: Console, found: dict[str, LabelInference]) -> None:
    """How near the guess at each site's classes came."""
    table = table_of(("site", "KL to the truth, nats", "of a uniform guess", "found"), left=(0,))
    for name, each in found.items():
        share = "–" if each.found != each.found else f"{each.found:.0%}"
        table.add_row(name, f"{each.kl_nats:.3f}", f"{each.uniform_kl_nats:.3f}", share)
    console.print(table)


def say(console: Console, line: str) -> None:
    """A line as it is, however long."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def table_of(headings: Sequence[str], left: Sequence[int]) -> Table:
    """An empty table; the columns in `left` are text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))  # fits 80 columns
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index in left else "right")
    return table
