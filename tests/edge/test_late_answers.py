"""Sites that join in mid-run, and answers that come after their deadline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from server.checks import Failure
from server.rounds import Reply, run_rounds
from strategies.wire import decode_answer, encode_plan


def test_each_site_gets_its_own_plan(make_sites: Any, make_grid: Any, make_plan: Any, gather: Any) -> None:
    files = make_sites(2)
    cohort = gather(make_grid(files.values()), clients=2)
    plans = {
        site: make_plan(files["site-0"], ask_rows=np.arange(rows)) for site, rows in (("site-0", 4), ("site-1", 9))
    }
    blobs = {site: encode_plan(plan) for site, plan in plans.items()}
    rows = {reply.client: decode_answer(reply.payload).rows for reply in cohort.ask(blobs)}
    assert rows == {"site-0": 4, "site-1": 9}


def test_a_site_of_a_new_name_is_asked_from_the_next_round_on(
    make_sites: Any, make_grid: Any, federation: Any, gather: Any
) -> None:
    files = make_sites(3)
    grid = make_grid(list(files.values())[:2])
    cohort = gather(grid, clients=2)
    config = federation(files["site-0"])
    rounds = run_rounds(cohort, config.rule(), config.exchange, 4)
    assert next(rounds).replies == 2
    grid.configs[4000] = {"site": str(files["site-2"])}
    assert next(rounds).replies == 2  # it is met when round 2 is asked
    assert cohort.clients == ["site-0", "site-1", "site-2"]
    result = next(rounds)
    assert (result.replies, result.failures) == (3, ())
    # and is lost like any other when it goes
    del grid.configs[4000]
    assert [(failure.client, failure.reason) for failure in next(rounds).failures] == [("site-2", "transport")]


def test_of_two_newcomers_with_one_name_one_gets_the_place(
    make_sites: Any, make_grid: Any, make_plan: Any, gather: Any
) -> None:
    files = make_sites(2)
    grid = make_grid([files["site-0"]])
    cohort = gather(grid, clients=1)
    grid.configs |= {node: {"site": str(files["site-1"])} for node in (4000, 4001)}
    list(cohort.ask({}))
    assert cohort.clients == ["site-0", "site-1"]
    assert 4000 in cohort._hellos
    assert 4001 not in cohort._hellos
    del grid.configs[4000]
    list(cohort.ask({}))
    assert 4001 in cohort._hellos


def test_a_newcomer_with_another_flower_stays_out(
    make_sites: Any, make_grid: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gather: Any
) -> None:
    files = make_sites(2)
    grid = make_grid([files["site-0"]])
    cohort = gather(grid, clients=1)
    grid.configs[4000] = {"site": str(files["site-1"])}
    monkeypatch.setattr("client.app.version", lambda _: "1.39.2")
    list(cohort.ask({}))
    list(cohort.ask({}))
    assert cohort.clients == ["site-0"]
    assert caplog.text.count("site-1 joined late with flwr 1.39.2 and stays out") == 1


def test_a_newcomer_that_does_not_introduce_itself_is_asked_again(
    make_sites: Any, make_grid: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, gather: Any
) -> None:
    files = make_sites(2)
    grid = make_grid([files["site-0"]])
    cohort = gather(grid, clients=1)
    grid.configs[4000] = {"site": str(tmp_path / "nowhere.toml")}
    list(cohort.ask({}))
    assert "node 4000 joined late and does not say who it is" in caplog.text
    grid.configs[4000] = {"site": str(files["site-1"])}
    list(cohort.ask({}))
    assert cohort.clients == ["site-0", "site-1"]


def plan_of(make_plan: Any, files: Any, round_: int) -> bytes:
    return encode_plan(make_plan(files["site-0"], round=round_))


def test_an_answer_after_the_deadline_comes_in_a_later_round_with_its_own(
    make_sites: Any, make_grid: Any, make_plan: Any, gather: Any
) -> None:
    files = make_sites(3)
    grid = make_grid(files.values())
    cohort = gather(grid, timeout_s=0.2, patience=5)
    grid.slow = {1001}
    first = {reply.client: reply for reply in cohort.ask(dict.fromkeys(cohort.clients, plan_of(make_plan, files, 1)))}
    assert first["site-1"].payload == Failure("site-1", "late", "no answer in 0.2 s")
    assert first["site-0"].round == 1
    second = list(cohort.ask(dict.fromkeys(["site-0", "site-2"], plan_of(make_plan, files, 2))))
    assert sorted(reply.client for reply in second) == ["site-0", "site-2"]
    grid.slow = set()
    third = {
        reply.client: reply for reply in cohort.ask(dict.fromkeys(["site-0", "site-2"], plan_of(make_plan, files, 3)))
    }
    assert (third["site-1"].round, third["site-0"].round) == (1, 3)
    assert decode_answer(third["site-1"].payload).round == 1
    fourth = list(cohort.ask(dict.fromkeys(cohort.clients, plan_of(make_plan, files, 4))))
    assert sorted(reply.client for reply in fourth) == ["site-0", "site-1", "site-2"]  # each answer comes once


def test_without_patience_an_answer_after_the_deadline_is_lost(
    make_sites: Any, make_grid: Any, make_plan: Any, gather: Any
) -> None:
    files = make_sites(2)
    grid = make_grid(files.values())
    cohort = gather(grid, clients=2, timeout_s=0.2)
    grid.slow = {1001}
    list(cohort.ask(dict.fromkeys(cohort.clients, plan_of(make_plan, files, 1))))
    grid.slow = set()
    assert [reply.client for reply in cohort.ask({"site-0": plan_of(make_plan, files, 2)})] == ["site-0"]


def test_where_nobody_is_asked_the_first_late_answer_ends_the_exchange(
    make_sites: Any, make_grid: Any, make_plan: Any, gather: Any
) -> None:
    files = make_sites(2)
    grid = make_grid(files.values())
    cohort = gather(grid, clients=2, timeout_s=0.3, patience=9)
    grid.slow = {1000, 1001}
    list(cohort.ask(dict.fromkeys(cohort.clients, plan_of(make_plan, files, 1))))
    began = time.monotonic()
    assert list(cohort.ask({})) == []
    assert time.monotonic() - began >= 0.3  # rounds must not rush by while all are at work
    grid.slow = {1001}
    began = time.monotonic()
    assert [reply.client for reply in cohort.ask({})] == ["site-0"]
    assert time.monotonic() - began < 0.3


def test_a_request_that_is_too_old_is_forgotten(make_sites: Any, make_grid: Any, make_plan: Any, gather: Any) -> None:
    files = make_sites(2)
    grid = make_grid(files.values())
    cohort = gather(grid, clients=2, timeout_s=0.1, patience=1)
    grid.slow = {1001}
    list(cohort.ask(dict.fromkeys(cohort.clients, plan_of(make_plan, files, 1))))
    assert len(cohort._open) == 1
    time.sleep(0.15)
    list(cohort.ask({"site-0": plan_of(make_plan, files, 2)}))
    assert cohort._open == {}


def test_a_late_error_is_a_failure_of_its_own_round(
    make_sites: Any, make_grid: Any, make_plan: Any, gather: Any
) -> None:
    files = make_sites(2)
    grid = make_grid(files.values())
    cohort = gather(grid, clients=2, timeout_s=0.2, patience=5)
    grid.slow, grid.spoil[1001] = {1001}, lambda request, _: Message(Error(5, "why"), reply_to=request)
    list(cohort.ask(dict.fromkeys(cohort.clients, plan_of(make_plan, files, 1))))
    grid.slow = set()
    replies = {reply.client: reply for reply in cohort.ask({"site-0": plan_of(make_plan, files, 2)})}
    assert replies["site-1"] == Reply("site-1", Failure("site-1", "no_reply", "code 5"), 1)


def test_an_asynchronous_run_over_flower_counts_late_votes(
    make_sites: Any, make_grid: Any, federation: Any, gather: Any
) -> None:
    files = make_sites(3)
    grid = make_grid(files.values())
    config = federation(files["site-0"], settings={"mode": "async", "choice": "fixed"})
    cohort = gather(grid, timeout_s=0.3, patience=config.exchange.patience)
    grid.slow = {1002}
    results = []
    for result in run_rounds(cohort, config.rule(), config.exchange, 4):
        results.append((result.replies, result.late, len(result.failures)))
        grid.slow = {1002} if result.round == 1 else set()
    # 1: two answer; 2: two, and the third is still at work; 3: its answer comes; 4: everybody again
    assert results == [(2, 0, 0), (2, 0, 0), (3, 1, 0), (3, 0, 0)]


def test_the_life_of_a_message_is_the_patience_and_no_longer(
    make_sites: Any, make_grid: Any, make_plan: Any, monkeypatch: pytest.MonkeyPatch, gather: Any
) -> None:
    files = make_sites(1)
    grid = make_grid(files.values())
    lives = []
    push = grid.push_messages
    monkeypatch.setattr(
        grid, "push_messages", lambda sent: lives.extend(message.metadata.ttl for message in sent) or push(sent)
    )
    for patience in (0, 4):
        cohort = gather(grid, clients=1, timeout_s=2.0, patience=patience)
        lives.clear()
        list(cohort.ask({"site-0": plan_of(make_plan, files, patience + 1)}))
        assert lives == [2.0 * (1 + patience) + 10.0]
