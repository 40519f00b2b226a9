"""A sweep's page and plots: every point stands where it belongs, and no name breaks the page."""

import csv
import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from simulations.config import parse_config
from simulations.reporting.sweep_figures import Curve, Dot, curves, draw, standalone, sweep_figures, x_axis
from simulations.reporting.sweep_report import write_sweep_report
from simulations.sweeps.grid import Axis, Point, axes_of, slug
from simulations.sweeps.outcomes import Outcome, groups_of, promises_of, spread, write_tables

INJECTION = "<script>alert(1)</script>"
BASE = parse_config({"data": {"name": "digits"}}, ".")


def outcome(accuracy=0.5, reason=None, privacy=None, **values):
    """A point with these axis values (`__` for the dot), and a run whose student has this accuracy."""
    named = {key.replace("__", "."): value for key, value in values.items()}
    run = {
        "verdict": "failed" if reason else "ok",
        "student": {"accuracy": accuracy, "macro_f1": accuracy},
        "teacher": {"accuracy": accuracy + 0.1},
        "clients": {"accuracy_mean": accuracy - 0.1, "accuracy_min": accuracy - 0.2},
        "upload_bytes": 1000,
        "download_bytes": 3000,
        "seconds": 2.0,
        **({} if privacy is None else {"privacy": privacy}),
    }
    return Outcome(Point(slug(named), named, (), BASE), run, reason)


def promised(epsilon, **told):
    """A run's privacy with this epsilon."""
    statement = {
        "epsilon": epsilon - 1e-4,
        "delta": 1e-5,
        "unit": "record",
        "adjacency": "zero_out",
        "composition": "plan",
        "seeded": True,
        "statement": f"(eps={epsilon}, delta=1e-05), record",
    }
    return {"max": {**statement, **told}}


def drawn(axes, lines, title="accuracy, %"):
    """The plot's own axes, and its dots with their bars as {label: [(x, y, half a bar)]}."""
    figure = Figure()
    across = x_axis(axes)
    draw(figure, across, [(line, "#000000", "-") for line in lines], "", title)
    (plot,) = figure.axes
    dots = {}
    for container in plot.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container.lines
        halves = [(segment[1][1] - segment[0][1]) / 2 for segment in bars.get_segments()]
        dots.setdefault(container.get_label(), []).extend(zip(*line.get_data(), halves, strict=True))
    return plot, dots


def ticks(plot):
    return [(place, text.get_text()) for place, text in zip(plot.get_xticks(), plot.get_xticklabels(), strict=True)]


# ---- means ---------------------------------------------------------------------------------------------------------
def test_a_spread_is_computed_by_hand():
    # .5 .6 .7: mean .6, squares .01 0 .01, over 3 - 1: .01 -> std .1
    over = spread([0.5, 0.7, 0.6])
    assert (over.n, over.low, over.high) == (3, 0.5, 0.7)
    assert over.mean == pytest.approx(0.6, abs=1e-15)
    assert over.std == pytest.approx(0.1, abs=1e-15)
    assert spread([0.5]).std is None
    assert spread([]) is None


def test_points_that_differ_in_the_seed_alone_are_one_group_and_failed_ones_do_not_count():
    outcomes = [
        outcome(0.4, federation__seed=1, client__lr=0.1),
        outcome(0.9, federation__seed=1, client__lr=0.2),
        outcome(0.6, federation__seed=2, client__lr=0.1),
        outcome(0.1, "it failed", federation__seed=3, client__lr=0.1),
    ]
    first, second = groups_of(outcomes)
    assert (first.values, second.values) == ({"client.lr": 0.1}, {"client.lr": 0.2})
    assert first.spread("student_accuracy") == spread([0.4, 0.6])
    assert (first.failed, second.failed) == (1, 0)
    assert second.spread("student_accuracy").std is None


def test_what_was_charged_and_the_whole_sentence_stand_in_the_table(tmp_path):
    outcomes = [outcome(privacy=promised(3), privacy__epsilon=3), outcome(privacy__epsilon=math.inf)]
    write_tables(tmp_path, axes_of(["privacy.epsilon=3,inf"]), outcomes)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["privacy.epsilon"], first["epsilon"]) == ("3", "2.999900")
    assert first["privacy"] == "(eps=3, delta=1e-05), record"
    assert (second["privacy.epsilon"], second["epsilon"], second["privacy"]) == ("inf", "", "")
    with (tmp_path / "summary.csv").open(newline="") as file:
        means = {(row["privacy.epsilon"], row["measure"]): row["privacy"] for row in csv.DictReader(file)}
    assert means["3", "epsilon"] == "epsilon: record, zero-out, delta 1e-05, plan; SIMULATION, NOT PRIVATE"
    assert means["inf", "student_accuracy"] == ""


def test_no_plot_shows_an_epsilon_without_what_it_stands_for():
    axes = axes_of(["privacy.epsilon=1,3,inf"])
    private = [outcome(privacy=promised(epsilon), privacy__epsilon=epsilon) for epsilon in (1, 3)]
    (figure,) = sweep_figures(groups_of([*private, outcome(privacy__epsilon=math.inf)]), axes).values()
    assert ">epsilon: record, zero-out, delta 1e-05, plan; SIMULATION, NOT PRIVATE<" in figure
    other = outcome(privacy=promised(3, seeded=False, delta=1e-6, unit="group(4)"), privacy__epsilon=3)
    assert promises_of([private[0], other]) == (
        "epsilon: group(4) or record, zero-out, delta 1e-05 or 1e-06, plan; SIMULATION, NOT PRIVATE"
    )
    assert promises_of([other]) == "epsilon: group(4), zero-out, delta 1e-06, plan"
    assert promises_of([outcome(privacy__epsilon=math.inf), outcome(reason="x", privacy=promised(1))]) == ""


# ---- plots ---------------------------------------------------------------------------------------------------------
def test_plots_are_against_the_first_axis_of_numbers_that_is_no_seed():
    assert x_axis(axes_of(["seed=1,2", "preset=a,b", "client.lr=1,2", "rounds=1,2"])).key == "client.lr"
    assert x_axis(axes_of(["seed=1,2", "preset=a,b"])).key == "strategy.preset"
    assert x_axis(axes_of(["seed=1,2"])) is None


def test_every_point_of_the_table_stands_in_the_plot_with_its_deviation():
    axes = axes_of(["privacy.epsilon=8,0.5,inf", "seed=1,2"])
    outcomes = [
        outcome(accuracy, privacy__epsilon=epsilon, federation__seed=seed)
        for epsilon, pair in ((8, (0.6, 0.8)), (0.5, (0.2, 0.2)), (math.inf, (0.9, 0.94)))
        for seed, accuracy in enumerate(pair, start=1)
    ]
    (line,) = curves(groups_of(outcomes), axes, "student_accuracy")
    plot, dots = drawn(axes, [Curve("student", line.dots)])
    found = dots["student"]
    # std of .6 .8: .1 * sqrt(2); of .9 .94: .02 * sqrt(2); the edge: 8 * 16^0.2
    edge = 8 * 16**0.2
    root = math.sqrt(2)
    expected = [(0.5, 20, 0), (8, 70, 10 * root), (edge, 92, 2 * root)]
    assert [pytest.approx(dot, abs=1e-9) for dot in expected] == [tuple(map(float, dot)) for dot in found]
    assert plot.get_xscale() == "log"  # 8 / 0.5 = 16 > 10
    assert ticks(plot) == [(0.5, "0.5"), (8, "8"), (pytest.approx(edge), "no privacy")]
    assert plot.get_xlabel() == "privacy.epsilon"


@pytest.mark.parametrize(
    ("grid", "scale", "labels"),
    [
        ("client.lr=1,10", "linear", ["1", "10"]),  # ten times is not more than ten times
        ("client.lr=1,10.5", "log", ["1", "10.5"]),
        ("client.lr=0,100", "linear", ["0", "100"]),  # there is no logarithm of 0
        ("client.lr=2,inf", "linear", ["2", "inf"]),  # only an epsilon's infinity is no privacy
        ("privacy.epsilon=inf", "linear", ["no privacy"]),
        ("client.lr=3", "linear", ["3"]),
        ("preset=ds-fl,fedmd", "linear", ["ds-fl", "fedmd"]),
    ],
)
def test_the_axis_is_logarithmic_where_it_spans_more_than_ten_times(grid, scale, labels):
    axes = axes_of([grid])
    (axis,) = axes
    places = axis.values if axis.numeric else range(len(axis.values))
    plot, dots = drawn(axes, [Curve("x", tuple(Dot(float(place), 0.5, None, 1) for place in places))])
    assert plot.get_xscale() == scale
    assert [text for _, text in ticks(plot)] == labels
    assert len(dots["x"]) == len(labels)
    assert all(half == 0 for _, _, half in dots["x"])  # one seed has no deviation


def test_many_values_are_all_drawn_and_some_of_them_named():
    axes = axes_of([f"rounds={','.join(map(str, range(1, 41)))}"])
    plot, dots = drawn(axes, [Curve("x", tuple(Dot(float(number), 0.5, None, 1) for number in range(1, 41)))])
    assert len(dots["x"]) == 40
    assert len(ticks(plot)) == 12
    assert (ticks(plot)[0], ticks(plot)[-1]) == ((1, "1"), (40, "40"))


def test_further_axes_are_lines_of_one_plot_in_the_same_colours_everywhere():
    axes = axes_of(["privacy.mechanism=dp-sgd,pate", "privacy.epsilon=1,8", "clients=5,10", "seed=1"])
    outcomes = [
        outcome(0.5, privacy__mechanism=name, privacy__epsilon=epsilon, federation__clients=count, federation__seed=1)
        for name in ("dp-sgd", "pate")
        for epsilon in (8, 1)
        for count in (5, 10)
    ]
    lines = curves(groups_of(outcomes), axes, "student_accuracy")
    assert [line.name for line in lines] == ["dp-sgd, 5", "dp-sgd, 10", "pate, 5", "pate, 10"]
    assert all([dot.x for dot in line.dots] == [1.0, 8.0] for line in lines)
    figures = sweep_figures(groups_of(outcomes), axes)
    assert list(figures) == ["accuracy-student", "accuracy-teacher", "accuracy-clients"]
    for figure in figures.values():
        assert all(f">{name}<" in figure for name in ("dp-sgd, 5", "dp-sgd, 10", "pate, 5", "pate, 10"))
        assert ">mechanism, clients<" in figure
    strokes = [re.findall(r"stroke: (#[0-9a-f]{6})", figure) for figure in figures.values()]
    assert strokes[0] == strokes[1] == strokes[2]


def test_one_line_has_student_teacher_and_clients_in_one_plot_and_what_was_not_measured_is_left_out():
    axes = axes_of(["client.lr=1,2"])
    outcomes = [outcome(client__lr=1), outcome(client__lr=2)]
    (figure,) = sweep_figures(groups_of(outcomes), axes).values()
    assert all(f">{name}<" in figure for name in ("student", "ensemble teacher (proxy rows)", "clients, mean"))
    tables = [Outcome(one.point, {**one.run, "student": {}, "teacher": {}}) for one in outcomes]
    (figure,) = sweep_figures(groups_of(tables), axes).values()
    assert ">student<" not in figure
    assert ">clients, mean<" in figure
    assert sweep_figures(groups_of([outcome(reason="x", client__lr=1)]), axes) == {}
    assert sweep_figures(groups_of([outcome(federation__seed=1)]), axes_of(["seed=1"])) == {}


def test_a_plot_as_a_file_is_an_svg_of_its_own():
    axes = (Axis("a.b", ("1", "2"), (1, 2)), Axis("c.d", ("x",), ("currency$ & <b>",)))
    figures = sweep_figures(groups_of([outcome(a__b=1, c__d=axes[1].values[0])]), axes)
    text = standalone(figures["accuracy-student"])
    root = ET.fromstring(text)  # noqa: S314 - ours
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "currency$ & <b>" in "".join(root.itertext())
    assert not re.search(r"var\(|currentColor", text)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    assert used <= {node.get("id") for node in root.iter() if node.get("id")}


# ---- the page ------------------------------------------------------------------------------------------------------
@pytest.fixture
def page(tmp_path):
    axes = axes_of(["privacy.epsilon=1,inf", f"strategy.preset={json.dumps(INJECTION)},b", "seed=1,2"])
    outcomes = [
        outcome(
            0.5 + 0.1 * seed,
            INJECTION if (epsilon, preset, seed) == (1, "b", 2) else None,
            {**promised(0.9001, statement=f"SIMULATION {INJECTION}"), "worth": "worth this"},
            privacy__epsilon=epsilon,
            strategy__preset=preset,
            federation__seed=seed,
        )
        for epsilon in (1, math.inf)
        for preset in (INJECTION, "b")
        for seed in (1, 2)
    ]
    (tmp_path / "accuracy-old.svg").write_text("")

    def write(price="Price & more"):
        return write_sweep_report(tmp_path, axes, outcomes, price).read_text()

    return write


def test_the_page_loads_nothing_runs_nothing_and_escapes_every_name(page):
    text = page()
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"", text) == []
    assert text.count("<svg") == 3
    assert "Price &amp; more" in text
    assert "SIMULATION &lt;script&gt;" in text
    assert text.count("worth this") == 1
    assert "the largest epsilon at the largest delta of any of them" in text
    assert "no epsilon covers the accuracies" in text
    assert text == page()


def test_the_page_has_every_mean_and_every_point(page, tmp_path):
    text = page(None)
    assert "Finished 7 of 8 points: the others have no result and are in no mean." in text
    # .6 and .7: mean .65, std .0707
    assert text.count("65.0 % ± 7.1") == 2 * 3  # student and macro F1; of the fourth group one seed failed
    assert '<td class="number">1 (1 failed)</td>' in text
    assert text.count('<td class="number">0.9000</td>') == 7
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == [
        "accuracy-clients.svg",
        "accuracy-student.svg",
        "accuracy-teacher.svg",
    ]


@pytest.mark.parametrize(
    ("seed", "said"), [(None, "A seed deals the data out anew"), (1, "both, on rows that are dealt once")]
)
def test_a_page_says_whether_its_seeds_deal_rows_anew(tmp_path, seed, said):
    axes = axes_of(["seed=1,2"])
    config = BASE.model_copy(update={"data": BASE.data.model_copy(update={"seed": seed})})
    outcomes = [outcome(federation__seed=number) for number in (1, 2)]
    outcomes = [replace(one, point=replace(one.point, config=config)) for one in outcomes]
    assert said in write_sweep_report(tmp_path, axes, outcomes, None).read_text()


def test_a_legend_names_every_curve_once_whatever_its_name():
    axes = (Axis("a.b", ("1", "inf"), (1, math.inf)), Axis("c.d", ("x", "y", "z"), ("_own:Rule", "$x$", "mean")))
    outcomes = [outcome(a__b=number, c__d=name) for number in (1, math.inf) for name in axes[1].values]
    figure = sweep_figures(groups_of(outcomes), axes)["accuracy-student"]
    assert [figure.count(f">{name}<") for name in ("_own:Rule", "$x$", "mean")] == [1, 1, 1]
