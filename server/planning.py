"""Which rows a round asks, and the plan of each client: equal plans are one object, encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from server.exchange import Exchange
from server.links import Links
from server.standing import Standing
from strategies.messages import Draw, LedgerHead, RoundPlan
from strategies.selection import disputed_rows, drawn, proxy_draw
from strategies.soft_labels import Int64, SoftLabels
from strategies.wire import address_plan, plan_body

_NO_ROWS = np.empty(0, np.int64)


def round_rows(exchange: Exchange, standing: Standing, round_: int) -> Int64:
    """The rows of a round's teacher."""
    if exchange.subject == "classes":
        return np.arange(exchange.classes, dtype=np.int64)
    if standing.disagreement is not None:
        return disputed_rows(exchange.seed, round_, standing.disagreement, exchange.rows_per_round)
    return drawn(_draw(exchange, round_))


def published(exchange: Exchange, standing: Standing, spoken: SoftLabels | None, round_: int) -> Links:
    """What the clients hold, and what this round's plans say to all of them as a difference, if they do."""
    if spoken is None or not _differs(exchange, standing):
        return standing.links
    return standing.links.published(round_, spoken, exchange.downlink)


def make_plans(
    exchange: Exchange,
    standing: Standing,
    links: Links,
    spoken: SoftLabels | None,
    round_: int,
    asked: Sequence[str],
    ask_rows: Int64,
    wants: tuple[str, ...],
) -> dict[str, RoundPlan]:
    """The plan of each asked client.

    Args:
        links: what the clients hold, and what this round's plans say.
        spoken: what the clients are told of the last teacher; None before the first.
        ask_rows: [n] rows that want a vote.
        wants: what the rule needs beside votes.

    Memory: where teachers go down as differences and clients come and go, nearly every client has a difference of its
    own, as large as what it is sent; else clients share plans.
    """
    drawing = exchange.subject == "proxy" and standing.disagreement is None
    common = RoundPlan(
        exchange.run,
        round_,
        exchange.proxy_sha256,
        exchange.classes_sha256,
        exchange.classes,
        ask_rows,
        exchange.uplink,
        exchange.downlink,
        subject=exchange.subject,
        wants=wants,
        ask_draw=_draw(exchange, round_) if drawing else None,
        teacher_draw=_draw(exchange, round_ - 1) if drawing and round_ > 1 else None,
    )
    return _plans(exchange, standing, links, spoken, asked, common)


def encode_plans(plans: Mapping[str, RoundPlan], heads: Mapping[str, LedgerHead]) -> dict[str, bytes]:
    """Bytes by client; one object for all clients that share a plan and have no ledger.

    Args:
        heads: what each client last said of its ledger.
    """
    shared = {id(plan): plan for plan in plans.values()}
    bodies = {key: plan_body(plan) for key, plan in shared.items()}
    unaddressed = {key: address_plan(body, None) for key, body in bodies.items()}
    return {
        client: address_plan(bodies[id(plan)], heads[client]) if client in heads else unaddressed[id(plan)]
        for client, plan in plans.items()
    }


def _plans(
    exchange: Exchange,
    standing: Standing,
    links: Links,
    spoken: SoftLabels | None,
    asked: Sequence[str],
    common: RoundPlan,
) -> dict[str, RoundPlan]:
    shared: dict[tuple[object, ...], RoundPlan] = {}
    plans = {}
    synced = spoken if _differs(exchange, standing) else None
    for client in asked:
        have = links.have(client)
        base, news = (0, _NO_ROWS) if synced is None else links.missing(client, synced.rows)
        # What a plan depends on beside the round.
        key = (base, news.tobytes(), have, client if standing.personal else "")
        if key not in shared:
            plan = replace(common, have=have)
            if synced is not None:
                plan = replace(plan, sync=links.sync(base, synced.rows, news))
            elif spoken is not None:
                plan = replace(plan, teachers=_whole(standing, spoken, client))
            shared[key] = plan
        plans[client] = shared[key]
    return plans


def _whole(standing: Standing, spoken: SoftLabels, client: str) -> tuple[SoftLabels, ...]:
    if standing.choices:
        return standing.choices
    own = standing.personal.get(client, spoken)  # who was absent is taught what all said
    return (own,) if len(own.rows) else ()


def _differs(exchange: Exchange, standing: Standing) -> bool:
    """Whether teachers go down as differences: only one that all clients share can."""
    return exchange.synced and not standing.choices and not standing.personal


def _draw(exchange: Exchange, round_: int) -> Draw:
    return proxy_draw(exchange.seed, round_, exchange.proxy_rows, exchange.rows_per_round, exchange.choice)
