"""Secure sums over Flower's messages: every step another message, to a process that knows only its site's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from client.config import load_site, write_site
from client.node import Node
from server.app import serve
from server.checkpoint import load_progress
from server.config import write_job
from server.replies import Reply
from server.rounds import run_rounds
from strategies.aggregators import build_aggregator

SUMS = {"secure_sum": True}


@pytest.fixture
def files(make_sites: Any, tmp_path: Path) -> list[dict[str, Path]]:
    """Two studies alike, of four sites that let no vote leave alone."""
    made = [make_sites(4, folder=tmp_path / name) for name in ("one", "other")]
    for path in (path for study in made for path in study.values()):
        config = load_site(path)
        policy = config.policy.model_copy(update={"secure_sum": "require"})  # type: ignore[union-attr]
        write_site(path, config.model_copy(update={"policy": policy}))
    return made


class Direct:
    """Nodes called as functions."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._nodes = {name: Node.open(path, durable=False) for name, path in files.items()}

    @property
    def clients(self) -> Sequence[str]:
        return sorted(self._nodes)

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        for name, plan in plans.items():
            yield Reply(name, self._nodes[name].answer(plan))


def teachers(cohort: Any, exchange: Any, rounds: int = 3) -> list[bytes]:
    rule = build_aggregator("era", {"temperature": 0.1})
    return [result.teacher.log_probs.tobytes() for result in run_rounds(cohort, rule, exchange, rounds)]


@pytest.mark.parametrize("known", [False, True])
def test_flower_carries_the_same_sums_as_plain_calls(
    files: Any, make_grid: Any, federation: Any, gather: Any, register: Any, known: bool
) -> None:
    for study in files if known else ():
        register(study)
    exchange = federation(files[0]["site-0"], settings=SUMS).exchange
    grid = make_grid(files[1].values())
    assert teachers(gather(grid, 4), exchange) == teachers(Direct(files[0]), exchange)
    introductions = 4
    assert len(grid.carried) == introductions + 4 * (
        (2 + known) * 3 + 2
    )  # 2 R + 2 exchanges with every node, or 3 R + 2


def test_a_site_that_goes_silent_costs_a_sum_its_votes_and_no_round(
    files: Any, make_grid: Any, federation: Any, gather: Any, tmp_path: Path
) -> None:
    grid = make_grid(files[0].values())
    heard = [0]

    def falls_silent(request: Any, reply: Any) -> Any:
        heard[0] += 1
        return reply if heard[0] < 3 else None  # it shares its keys, and never gives its input

    grid.spoil = {1003: falls_silent}
    exchange = federation(files[0]["site-0"], settings=SUMS).exchange
    (result, *_) = run_rounds(gather(grid, 4), build_aggregator("mean", {}), exchange, 2)
    assert result.replies == 3
    assert {failure.client for failure in result.failures} == {"site-3"}


def test_the_coordinators_app_runs_a_federation_of_sums_and_resumes_it(
    files: Any, make_grid: Any, federation: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for rounds, resume in ((2, False), (3, True)):
        config = federation(files[0]["site-0"], settings=SUMS, rounds=rounds, clients=4)
        (tmp_path / "job").mkdir(exist_ok=True)
        write_job(tmp_path / "job" / "federation.json", config)
        serve(make_grid(files[0].values()), tmp_path / "job", out, resume=resume)
    progress = load_progress(out / "checkpoint" / "server.safetensors", config)
    assert [(row.round, row.replies, row.rejected) for row in progress.rounds] == [(1, 4, 0), (2, 4, 0), (3, 4, 0)]
