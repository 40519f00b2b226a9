"""Laws of the report: self-contained, the same bytes for the same inputs, and nothing that a name can break."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from simulations.reporting.comparison import comparison_rows
from simulations.reporting.report import write_report

HEADER = (
    "round,student_accuracy,teacher_accuracy,client_accuracy_mean,client_accuracy_min,"
    "replies,late,rejected,rows,upload_bytes,download_bytes,seconds\n"
)
INJECTION = "<script>alert(1)</script>"


def _run(clients: int = 3, classes: tuple[str, ...] = ("good", "bad"), **changes: Any) -> dict[str, Any]:
    run: dict[str, Any] = {
        "schema": 1,
        "verdict": "ok",
        "reason": None,
        "config": {
            "federation": {"clients": clients, "rounds": 3, "mode": "sync"},
            "data": {"name": "digits", "path": None},
            "strategy": {"preset": "ds-fl", "aggregator": {"name": "era"}, "uplink": "float16", "downlink": "float32"},
        },
        "engine": "in-process",
        "seed": 7,
        "versions": {"consilium": "0.1.0"},
        "proxy_sha256": "ab" * 32,
        "classes": list(classes),
        "rounds_done": 3,
        "student": {
            "model": "mlp",
            "accuracy": 0.8,
            "macro_f1": 0.79,
            "parameters": 4810,
            "best": {"round": 2, "accuracy": 0.82, "macro_f1": 0.8},
        },
        "teacher": {"accuracy": 0.9, "entropy_nats": 0.2, "sha256": "cd" * 32},
        "clients": {
            "accuracy_mean": 0.75,
            "accuracy_min": 0.6,
            "each": [
                {
                    "client": f"client-{i}",
                    "model": "mlp",
                    "parameters": 4810,
                    "rows": 10 * len(classes),
                    "class_counts": [10 + i] * len(classes),
                    "accuracy": None if i else 0.75,
                }
                for i in range(clients)
            ],
        },
        "local_only": {"accuracy_mean": 0.5, "accuracy_min": 0.25},
        "pooled": {"accuracy": 0.95},
        "failures": [],
        "upload_bytes": 3_000,
        "download_bytes": 1_000,
        "weights_bytes": 50_000,
        "seconds": 12.5,
        "confusion": [[9 if i == j else 1 for j in range(len(classes))] for i in range(len(classes))],
    }
    return {**run, **changes}


ROUNDS = (
    HEADER + "1,0.5,0.6,0.4,0.3,3,0,0,90,1000,300,1.5\n2,0.7,,,nan,3,1,0,80,1000,300,1.5\n"
    "3,0.8,0.9,0.75,0.6,2,0,1,70,1000,400,2\n"
)


def _write(folder: Path, run: dict[str, Any], rounds: str | None = ROUNDS) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    if rounds is not None:
        (folder / "metrics.csv").write_text(rounds, encoding="utf-8")
    return write_report(folder).read_text(encoding="utf-8")


class _Page(HTMLParser):
    """Tags, attributes and text as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib

    first = _write(tmp_path / "a", _run())
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.fonttype": "path"}):
        assert _write(tmp_path / "b", _run()) == first
    assert _write(tmp_path / "c", _run(seed=8)) != first


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    text = _write(tmp_path, _run())
    page = _Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href", "srcset"):
            assert value.startswith(("#", "data:image/png;base64,")), value
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_every_reference_inside_the_page_has_one_target(tmp_path: Path) -> None:
    page = _Page(text := _write(tmp_path, _run()))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) == set(ids)


@pytest.mark.parametrize(
    "name", [INJECTION, "a & b", "$x^2$ $", "\x00\x1b[31m", "日本語", ' id="x" font: 1px \'y', "x" * 300]
)
def test_no_name_breaks_the_page(tmp_path: Path, name: str) -> None:
    clean = _Page(_write(tmp_path / "clean", _run()))
    run = _run(classes=(name, "other"), reason=name, verdict="degraded")
    run["failures"] = [{"round": 1, "client": name, "reason": name, "detail": name}]
    run["clients"]["each"][0] |= {"client": name, "model": name}
    run["config"]["data"]["name"] = name
    run["versions"] = {name: name}
    page = _Page(_write(tmp_path / "odd", run))
    assert "script" not in page.tags
    # The failures table and the verdict's colour differ; no other element appears.
    assert set(page.tags) == set(clean.tags)
    if name.isprintable():
        assert name in page.text


def test_report_and_terminal_show_the_same_numbers(tmp_path: Path) -> None:
    page = _Page(_write(tmp_path, _run()))
    for row in comparison_rows(_run()):
        assert row.value in page.text
        assert row.note in page.text


@pytest.mark.parametrize("rounds", [None, "", HEADER])
def test_a_run_that_failed_at_once_has_a_report(tmp_path: Path, rounds: str | None) -> None:
    run = _run(verdict="failed", reason="quorum=0.5 was not met", rounds_done=0, student=None, teacher=None)
    run |= {"clients": None, "local_only": None, "pooled": None, "confusion": [], "upload_bytes": 0}
    run |= {"failures": [{"round": 1, "client": "client-2", "reason": "timeout", "detail": ""}]}
    page = _Page(_write(tmp_path, run, rounds))
    assert "Failed after 0 rounds: quorum=0.5 was not met" in page.text
    assert "No round was finished" in page.text
    assert "svg" not in page.tags
    assert "timeout" in page.text


@pytest.mark.parametrize(("lost", "said"), [(0, "as planned."), (1, "1 answer was"), (2, "2 answers were")])
def test_a_degraded_run_says_what_was_lost(tmp_path: Path, lost: int, said: str) -> None:
    failure = {"round": 1, "client": "client-2", "reason": "timeout", "detail": ""}
    text = _Page(_write(tmp_path, _run(verdict="degraded", failures=[failure] * lost))).text
    assert f"Finished 3 rounds, but not as planned{'' if lost else '.'}" in text
    assert said in text


def test_a_run_without_most_of_its_parts_has_a_report(tmp_path: Path) -> None:
    assert "Failed after 0 rounds." in _Page(_write(tmp_path, {"schema": 1}, None)).text


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (1, 1), (100, 10), (30, 120)])
def test_any_number_of_clients_and_classes_fits(tmp_path: Path, clients: int, classes: int) -> None:
    names = tuple(f"a class with a long name, number {i}" for i in range(classes))
    text = _write(tmp_path, _run(clients, names), HEADER + "1,0.5,,,,1,0,0,90,100,100,1\n")
    assert len(text) < 400_000
    # A label stands for each n-th row where rows are too many to name.
    assert text.count("client-") <= clients + 40


def test_names_that_differ_only_in_their_end_stay_apart(tmp_path: Path) -> None:
    text = _write(
        tmp_path, _run(classes=("carcinoma of the left lung, stage 1", "carcinoma of the left lung, stage 2"))
    )
    labels = set(re.findall(r">(carcinoma[^<]*…[^<]*)<", text))
    assert len(labels) == 2


def test_cells_that_are_not_measured_are_dashes(tmp_path: Path) -> None:
    text = _write(tmp_path, _run(), HEADER + "1,nan,inf,,,,,,,,,\n")
    assert "nan" not in _Page(text).text
    assert text.count('<td class="number">–</td>') >= 9


def test_absent_baselines_are_not_drawn(tmp_path: Path) -> None:
    with_both = _write(tmp_path / "with", _run())
    without = _write(tmp_path / "without", _run(local_only=None, pooled=None))
    assert ">pooled data<" in with_both
    assert ">pooled data<" not in without


def test_the_page_says_that_nothing_is_private_here(tmp_path: Path) -> None:
    text = " ".join(_Page(_write(tmp_path, _run())).text.split())
    assert "No privacy mechanism was on in this run." in text
    assert "soft labels are not private by themselves" in text
    assert "Rounding, temperature and codecs are not privacy." in text
    assert "Known because all sites are on this machine" in text


EXCHANGE: dict[str, Any] = {
    "federation": {"clients": 3, "rounds": 3, "mode": "async", "staleness": 0.5},
    "data": {"name": "digits"},
    "strategy": {
        "preset": "scarlet",
        "aggregator": {"name": "mean", "weight": "entropy", "then": {"name": "enhanced-era", "exponent": 2.0}},
        "uplink": "quantised:1+entropy",
        "downlink": "float16+delta+entropy",
        "choice": "disagreement",
        "cache_rounds": 50,
    },
    "client": {"selector": {"name": "kulsif", "quantile": 0.25}},
    "attack": {"name": "partial", "clients": 2, "attack": {"name": "hips", "aim": "loss"}},
    "stragglers": {"share": 0.3, "rounds": 2},
    "newcomers": {"share": 0.1, "round": 7},
}


def _facts(page: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))


def test_every_part_of_the_exchange_is_told(tmp_path: Path) -> None:
    run = _run(
        config=EXCHANGE,
        subject="proxy",
        attackers=["client-0", "client-2"],
        stragglers=["client-1"],
        newcomers=["client-4"],
    )
    expected = {
        "Method": "scarlet",
        "Rule for votes": "mean, weight entropy, then enhanced-era (exponent 2.0)",
        "Votes travel as": "quantised:1+entropy",
        "Teachers travel as": "float16+delta+entropy",
        "Rows of a round": "half of them where voters disagreed most",
        "Clients vote on": "rows like their own, by kulsif, quantile 0.25",
        "Cache": "a label is used again for 50 rounds",
        "Late votes": "count in the round in which they come, s rounds late as (1 + s)^-0.5",
        "Stragglers": "late by 2 rounds: client-1",
        "Newcomers": "from round 7: client-4",
        "Attack": "partial, clients 2, attack hips (aim loss)",
    }
    facts = _facts(_write(tmp_path, run))
    assert {name: facts[name] for name in expected} == expected


def test_parts_that_are_off_are_not_named(tmp_path: Path) -> None:
    facts = _facts(_write(tmp_path, _run()))
    assert not {"Clients vote on", "Cache", "Late votes", "Stragglers", "Attack"} & set(facts)
    assert (facts["Rule for votes"], facts["Votes travel as"], facts["Teachers travel as"]) == (
        "era",
        "float16",
        "float32",
    )


def test_an_attack_is_a_warning_at_the_top(tmp_path: Path) -> None:
    plain = _write(tmp_path / "plain", _run())
    assert '<p class="warning">' not in plain
    page = _write(tmp_path / "attacked", _run(config=EXCHANGE, attackers=["client-0", INJECTION]))
    assert page.count('<p class="warning">') == 1
    header = page.partition("</header>")[0]
    assert "An attack was simulated: 2 of 3 clients (client-0, &lt;script&gt;" in header


def test_a_method_without_a_student_is_no_failure(tmp_path: Path) -> None:
    nobody = {"model": None, "parameters": None, "accuracy": None, "macro_f1": None, "best": None}
    teacher = {"accuracy": None, "entropy_nats": 0.2, "sha256": "cd" * 32}
    run = _run(subject="classes", student=nobody, teacher=teacher, confusion=None)
    rounds = HEADER + "1,,,0.4,0.3,3,0,0,10,1000,300,1.5\n2,,,0.5,0.4,3,0,0,10,1000,300,1.5\n"
    page = _write(tmp_path, run, rounds)
    text = " ".join(_Page(page).text.split())
    assert "Finished 3 rounds as planned." in text
    assert "This method trains no student: the clients' own models are its result." in text
    assert _facts(page)["Rows of a round"] == "no proxy rows: one row a class"
    assert "None" not in text
    assert "The student's mistakes" not in text


def test_late_answers_and_rows_have_their_columns(tmp_path: Path) -> None:
    text = _write(tmp_path, _run())
    row = re.search(r'<tr>(<td class="number">3</td>.*?)</tr>', text)
    assert row is not None
    cells = re.findall(r">([^<]*)</td>", row.group(1))
    # round, four accuracies, replies, late, rejected, rows, up, down, time
    assert cells == ["3", "80.0 %", "90.0 %", "75.0 %", "60.0 %", "2", "0", "1", "70", "1.0 kB", "400 B", "2.0 s"]
    assert text.count("<th") - text.count("<thead") >= len(cells)


def test_the_picture_of_bytes_tells_up_and_down_apart(tmp_path: Path) -> None:
    text = _write(tmp_path, _run())
    assert ">of these up<" in text
    assert ">of these down<" in text


def test_a_report_leaves_pyplot_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    _write(tmp_path, _run())
    assert dict(matplotlib.rcParams) == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
