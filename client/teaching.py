"""From a plan to the one teacher that this site learns from, and to the table of labels that it then holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from privacy.policy import PolicyError
from strategies.believing import believe_symbols
from strategies.codecs import link_named
from strategies.envelope import WireError
from strategies.messages import RoundPlan, Sync
from strategies.soft_labels import Int64, SoftLabels
from strategies.tables import Table


def teacher_of(
    plan: RoundPlan, table: Table | None, proxy_rows: int, predict: Callable[[Int64], SoftLabels]
) -> tuple[SoftLabels | None, Table | None]:
    """The teacher that a plan carries, whole, as a difference, or to be chosen.

    Args:
        table: what earlier differences of this run said; None before the first.
        proxy_rows: rows of the proxy set.
        predict: this site's own votes; asked only if there are several teachers to choose from.

    Returns:
        The teacher, None in the first round; and the table after this plan.

    Raises:
        PolicyError: `need_key`: the difference is to something else than what is held here; `bad_teacher`.
    """
    if plan.sync is not None:
        return _synced(plan, plan.sync, table, proxy_rows)
    if len(plan.teachers) > 1:
        return _nearest(plan.teachers, predict(plan.teachers[0].rows)), table
    return (plan.teachers[0] if plan.teachers else None), table


def _synced(plan: RoundPlan, sync: Sync, table: Table | None, proxy_rows: int) -> tuple[SoftLabels, Table]:
    held = empty_table(plan, proxy_rows, plan.downlink)
    if sync.base:
        if table is None or sync.base > table.round or table.symbols.shape != held.symbols.shape:
            raise PolicyError("need_key", f"a difference to round {sync.base}, which is not what is held here")
        held = table
    after = held.changed(plan.round, sync.changed, sync.symbols)
    if after.digest(sync.rows) != sync.digest:
        raise PolicyError("need_key", "the labels after the difference are not those that the coordinator has")
    try:
        return believe_symbols(sync.rows, after.symbols[sync.rows], plan.downlink, plan.classes), after
    except WireError as error:
        raise PolicyError("bad_teacher", str(error)) from None


def _nearest(teachers: tuple[SoftLabels, ...], own: SoftLabels) -> SoftLabels:
    """Row by row the teacher whose probabilities are nearest to the site's own vote (COMET); ties go to the first."""
    mine = own.probabilities()
    distances = np.stack([((teacher.probabilities() - mine) ** 2).sum(axis=1) for teacher in teachers])
    chosen = np.stack([teacher.log_probs for teacher in teachers])[distances.argmin(axis=0), np.arange(len(mine))]
    return SoftLabels(own.rows, chosen)


def empty_table(plan: RoundPlan, proxy_rows: int, spec: str) -> Table:
    """What a site holds of a link before its first message."""
    width = len(link_named(spec).codec.alphabets(plan.classes))
    return Table.empty(proxy_rows if plan.subject == "proxy" else plan.classes, width)
