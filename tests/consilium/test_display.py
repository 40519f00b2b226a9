"""Laws of the terminal: plain lines where nobody looks on, a live table where somebody does."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from consilium.display import SHOWN_ROUNDS, RunView, print_comparison, print_next
from simulations.reporting.comparison import comparison_rows

METRICS: dict[str, float | int | None] = {
    "round": 3,
    "student_accuracy": 0.912,
    "teacher_accuracy": 0.931,
    "client_accuracy_mean": None,
    "client_accuracy_min": float("nan"),
    "replies": 9,
    "late": 2,
    "rejected": 1,
    "rows": 900,
    "upload_bytes": 1_234,
    "download_bytes": 2_500_000,
    "seconds": 1.25,
}
RUN: dict[str, Any] = {
    "student": {"accuracy": 0.8, "best": {"round": 4, "accuracy": 0.85}},
    "clients": {"accuracy_mean": 0.75, "accuracy_min": 0.6},
    "upload_bytes": 3_000,
    "download_bytes": 1_000,
    "weights_bytes": 50_000,
}


def _plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False, width=60), out


def _tty(width: int = 100) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=width, height=60, color_system="truecolor"), out


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_without_a_tty_a_round_is_one_line_without_control_codes() -> None:
    console, out = _plain()
    with RunView("digits, [5] clients", 10, console) as view:
        view.phase("preparing data")
        view.row(METRICS)
    assert out.getvalue().splitlines() == [
        "digits, [5] clients",
        "preparing data",
        "round 3/10  student 91.2 %  teacher 93.1 %  replies 9 (2 late, 1 rejected)  up 1.2 kB  down 2.5 MB  1.2 s",
    ]


def test_without_a_tty_nothing_printed_has_control_codes_and_no_line_is_broken() -> None:
    console, out = _plain()
    print_comparison(console, RUN)
    print_next(console, "consilium report runs/" + "very-long-name-" * 10 + "[bold]")
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert len(lines) == len(comparison_rows(RUN)) + 1
    assert lines[-1] == "next: consilium report runs/" + "very-long-name-" * 10 + "[bold]"


@pytest.mark.parametrize("make", [_plain, lambda: _tty(140)])
def test_the_terminal_warns_of_an_attack_before_any_number(make: Any) -> None:
    console, out = make()
    attack = {"name": "[bold]lie[/x]", "clients": 1}
    print_comparison(console, {**RUN, "config": {"attack": attack}, "attackers": ["site-001"]})
    assert "An attack was simulated" in out.getvalue()
    assert "[bold]lie[/x]" in out.getvalue()
    assert out.getvalue().index("An attack was simulated") < out.getvalue().index("80.0 %")


def test_accuracies_beside_a_promise_are_marked_as_none_of_its_releases() -> None:
    console, out = _plain()
    promise = {
        "max": {"statement": "(eps=3, delta=1e-05), record", "seeded": True},
        "each": [],
        "on_the_side": "computed by it",
    }
    print_comparison(console, {**RUN, "privacy": promise})
    assert out.getvalue().splitlines()[:2] == ["(eps=3, delta=1e-05), record", "On the side: computed by it."]


@pytest.mark.parametrize(("rates", "said"), [((0.2, 1.0, 1.0), "2 of 3 clients take all of their rows"), ((0.2,), "")])
def test_the_terminal_says_where_sampling_hides_nobody(rates: tuple[float, ...], said: str) -> None:
    console, out = _plain()
    each = [{"statement": "(eps=1)", "seeded": True, "sample_rate": rate} for rate in rates]
    print_comparison(console, {**RUN, "privacy": {"max": each[0], "each": each, "on_the_side": "rows"}})
    assert said in out.getvalue()
    assert ("clients take all" in out.getvalue()) == bool(said)


@pytest.mark.parametrize("make", [_plain, lambda: _tty(140)])
def test_the_terminal_shows_the_comparison_of_the_report(make: Any) -> None:
    console, out = make()
    print_comparison(console, RUN)
    for row in comparison_rows(RUN):
        assert row.value in out.getvalue()
        assert row.note in out.getvalue()


def test_a_repeated_phase_is_printed_once() -> None:
    console, out = _plain()
    with RunView("run", 2, console) as view:
        view.phase("training")
        view.phase("training")
        view.phase("")
    assert out.getvalue() == "run\ntraining\n"


def test_on_a_tty_only_the_last_rounds_are_shown() -> None:
    console, out = _tty()
    with RunView("run", 40, console) as view:
        for number in range(1, 31):
            view.row({**METRICS, "round": number, "upload_bytes": number * 1000, "download_bytes": 0})
        out.truncate(0)
    last = out.getvalue()
    assert f"{30 - SHOWN_ROUNDS + 1}.0 kB" in last
    assert f"{30 - SHOWN_ROUNDS}.0 kB" not in last
    assert "30/40 rounds" in last
    assert "\x1b[" in last


def test_the_widest_round_fits_a_terminal_of_80_columns() -> None:
    console, out = _tty(80)
    wide = {key: 1.0 for key in METRICS if "accuracy" in key}
    with RunView("run", 1000, console) as view:
        view.row({**METRICS, **wide, "round": 1000, "replies": 1000, "rejected": 9, "upload_bytes": 997_490_000})
        out.truncate(0)
    assert "…" not in out.getvalue()
    assert "997.5 MB" in out.getvalue()
    assert "2.5 MB" in out.getvalue()


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console, out = _tty()
    with RunView("run", 3, console) as view:
        view.row(METRICS)
    print_next(console, "consilium report")
    assert "38;2" not in out.getvalue()
    assert "[36m" not in out.getvalue()


def test_the_time_left_is_the_mean_round_times_the_rounds_left() -> None:
    console, _ = _tty()
    now = [0.0]
    view = RunView("run", 10, console, clock=lambda: now[0])
    now[0] = 100.0  # preparation, which the rounds' time leaves out
    view.phase("round 1")
    for number, second in ((1, 110.0), (2, 130.0)):
        now[0] = second
        view.row({"round": number})
    # (10 + 20) / 2 = 15 s a round; 8 rounds left
    assert view._left(2) == 120.0
    now[0] = 135.0
    assert view._left(2) == 115.0


def test_an_error_passes_through_and_gives_the_terminal_back() -> None:
    console, out = _tty()

    def fail() -> None:
        with RunView("run", 3, console) as view:
            view.phase("round 1")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert "stopped: round 1" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_names_are_text_and_not_markup() -> None:
    for console, out in (_plain(), _tty()):
        view = RunView("[bold]set[/bold] [/x]", 1, console)
        with pytest.raises(KeyboardInterrupt), view:
            _interrupt(view, "[red]3/10 [/y] :smile:")
        assert "[bold]set[/bold] [/x]" in out.getvalue()
        assert "[red]3/10 [/y] :smile:" in out.getvalue()


def _interrupt(view: RunView, phase: str) -> None:
    view.phase(phase)
    raise KeyboardInterrupt


def test_importing_the_display_loads_nothing_heavy() -> None:
    code = (
        "import sys, consilium.display;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib', 'pandas', 'flwr', 'numpy', 'pydantic')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
