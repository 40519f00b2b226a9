"""What a run's page shows of `consilium audit`: the files in the run's own folder, with what they cannot show."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.statement import shown, shown_delta
from simulations.reporting.comparison import percent
from simulations.reporting.figures import finite

# Of a run: each audit has a folder of its own in it.
FOLDER = "audits"


@dataclass(frozen=True, slots=True)
class Found:
    """What an audit found, ready to be shown.

    Attributes:
        refuted: whether it is more than was promised.
        sentences: what was done, and last what it came to.
        heads, rows: the table; its first `texts` columns are no numbers.
    """

    refuted: bool
    sentences: Sequence[str]
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    texts: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """One audit of the page.

    Attributes:
        title: what was audited.
        where: its file, from the run's folder.
        can, cannot: what it can show, and what not.
    """

    title: str
    where: str
    found: Found
    can: str = ""
    cannot: str = ""


def audits_part(folder: Path) -> list[Part]:
    """The audits that lie in a run's folder, by name; a file that is none of this version says so in its place."""
    return [_part(path, folder) for path in sorted((folder / FOLDER).glob("*/*.json")) if path.stem in _KINDS]


def _part(path: Path, folder: Path) -> Part:
    title, told_of = _KINDS[path.stem]
    where = path.relative_to(folder).as_posix()
    try:
        told = json.loads(path.read_bytes())
        return Part(title, where, told_of(told), str(told["can_show"]), str(told["cannot_show"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Part(title, where, Found(False, ["This file is no audit of this version: run the audit again."]))


def _membership(found: Mapping[str, Any]) -> Found:
    rows = [
        [
            _seen(each["seen"]),
            str(each["attack"]),
            f"{each['auc']:.3f} ({each['auc_low']:.3f} to {each['auc_high']:.3f})",
            _between(each, "tpr_1"),
            _between(each, "tpr_01"),
            f"{each['epsilon_low']:.2f}",
        ]
        for each in found["found"]
    ]
    known, others = percent(found["accuracy_in"]), percent(found["accuracy_out"])
    sentences = [
        f"{found['site']}: {found['records']} rows, {found['shadows']} models, each trained on half of them and "
        f"attacked in turn; accuracy {known} on rows that they know, {others} on others. Intervals are of 95 %.",
        *_trained(found),
    ]
    if found["strangers"] < 1000:
        sentences.append(
            f"Of {found['strangers']} strangers 0.1 % is less than one: there no false alarm counts at all."
        )
    epsilon = finite(found["epsilon"])
    if epsilon is None:
        sentences.append("Nothing is promised, so that nothing bounds an attack.")
    else:
        few, fewer = (percent(finite(found[key])) for key in ("most_tpr_1", "most_tpr_01"))
        promise = f"epsilon {shown(epsilon)} at delta {shown_delta(found['delta'])}"
        rows.append([f"most that {promise} allows", "any", "", few, fewer, ""])
        verdict = "Some attack found more: the promise is refuted" if found["refuted"] else "No attack refutes that"
        sentences.append(
            f"{promise.capitalize()} allows to find {few} of the members at 1 % false alarms and {fewer} at 0.1 %. "
            f"{verdict}."
        )
    heads = ["seen", "attack", "AUC", "found at 1 % false alarms", "at 0.1 %", "refutes epsilon below"]
    return Found(found["refuted"], sentences, heads, rows, 2)


def _one_run(found: Mapping[str, Any]) -> Found:
    claimed = finite(found["epsilon"])
    numbers = [str(found[key]) for key in ("canaries", "guesses", "right")]
    cells = [f"{found['epsilon_low']:.4f}", "–" if claimed is None else shown(claimed), f"{found['ceiling']:.4f}"]
    heads = ["site", "canaries", "guesses", "right", "epsilon at least", "claimed", "most it could show"]
    verdict = "The claim is refuted" if found["refuted"] else "The claim stands"
    told = f"{'Nothing is promised' if claimed is None else verdict} (delta {shown_delta(found['delta'])})."
    return Found(found["refuted"], [*_trained(found), told], heads, [[str(found["site"]), *numbers, *cells]], 1)


def _labels(found: Mapping[str, Any]) -> Found:
    rows = [
        [str(name), f"{each['kl_nats']:.3f}", f"{each['uniform_kl_nats']:.3f}", percent(finite(each["found"]))]
        for name, each in found["sites"].items()
    ]
    heads = ["site", "KL to the truth, nats", "of a uniform guess", "found"]
    return Found(False, _trained(found), heads, rows, 1)


def _mechanism(found: Mapping[str, Any]) -> Found:
    rows = [
        [
            str(each["mechanism"]),
            "refuted" if each["refuted"] else "stands",
            shown(each["claimed"]),
            f"{each['epsilon_low']:.4f}",
        ]
        for each in found["mechanisms"]
    ]
    refuted = any(each["refuted"] for each in found["mechanisms"])
    return Found(refuted, [], ["mechanism", "verdict", "claimed epsilon", "at least"], rows, 2)


_KINDS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Found]]] = {
    "membership": ("Who was trained on", _membership),
    "one-run": ("One training with canaries", _one_run),
    "labels": ("Which classes a site has", _labels),
    "mechanism": ("Noise against its claim", _mechanism),
}


def _trained(found: Mapping[str, Any]) -> list[str]:
    """Where the audit's own options replaced the run's promise, what its models trained with."""
    wanted = found["wanted"]
    if wanted is None:
        return []
    return [f"Its models trained by DP-SGD with epsilon {shown(wanted['epsilon'])}, whatever this run promises."]


def _seen(name: str) -> str:
    return "the model itself" if name == "model" else f"labels, {name}"


def _between(each: Mapping[str, Any], key: str) -> str:
    return f"{percent(each[key])} ({percent(each[key + '_low'])} to {percent(each[key + '_high'])})"
