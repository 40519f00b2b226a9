"""Attackers for the test bench. A new attack is one file here, one line below, one test row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulations.attacks.attack import Attack
from simulations.attacks.class_covariance import ClassCovariance
from simulations.attacks.colluding import Colluding
from simulations.attacks.hips import Hips
from simulations.attacks.label_shift import LabelShift
from simulations.attacks.least_likely import LeastLikely
from simulations.attacks.lie import Lie
from simulations.attacks.nan import Nan
from simulations.attacks.partial import Partial
from simulations.attacks.peak_controlled import PeakControlled
from simulations.attacks.random_votes import RandomVotes
from simulations.attacks.replay import Replay
from simulations.attacks.scaled_logits import ScaledLogits
from simulations.attacks.second_likeliest import SecondLikeliest
from simulations.attacks.uniform import Uniform
from strategies.parts import build_part

ATTACKS: dict[str, type] = {
    "nan": Nan,
    "scaled-logits": ScaledLogits,
    "random": RandomVotes,
    "uniform": Uniform,
    "replay": Replay,
    "label-shift": LabelShift,
    "second-likeliest": SecondLikeliest,
    "least-likely": LeastLikely,
    "class-covariance": ClassCovariance,
    "hips": Hips,
    "partial": Partial,
    "peak-controlled": PeakControlled,
    "colluding": Colluding,
    "lie": Lie,
}


def build_attack(name: str, settings: Mapping[str, Any]) -> Attack:
    """The attack `name` with its settings.

    Args:
        name: a key of ATTACKS, or `module:Name` of an attack outside the tree.
        settings: the attack's fields; an attack itself by name or as a table with a name.

    Raises:
        KeyError: unknown attack.
        ValueError: unknown setting, or a value out of the attack's bounds.

    >>> build_attack("partial", {"attack": {"name": "hips", "aim": "class-covariance"}, "share": 0.2})
    Partial(attack=Hips(aim='class-covariance'), share=0.2)
    """
    attack: Attack = build_part("attack", ATTACKS, name, settings, "logits")
    return attack
