"""What a promise is a function of: what its site releases, and nothing beside it."""

import dataclasses
import json

import pytest

from client.config import PartSection, PolicySection, PrivacySection, SiteConfig, SiteConfigError, TrainingSection
from client.promise import promise_of
from privacy.mechanisms.dp_sgd import DpSgdTraining


def site(training=None, **privacy):
    return SiteConfig(
        site="a",
        private="a.safetensors",
        proxy="proxy",
        seed=1,
        model="linear",
        training=TrainingSection(batch_size=10, local_epochs=2, **(training or {})),
        policy=PolicySection(proxy_sha256=["00"], max_rows_per_round=40, max_answers=3),
        privacy=PrivacySection(**{"noise_multiplier": 2.0, **privacy}),
    )


def promise(records=30, training=None, **privacy):
    return promise_of(site(training, **privacy), records, 3)


SPLIT = {"name": "client-sum-distributed", "clip": 1.0, "clients": 20, "least": 14, "colluding": 0.0}


@pytest.mark.parametrize(
    "mechanism",
    [
        {"name": "dp-sgd"},
        {"name": "pate", "teachers": 5},
        {"name": "k-rr"},
        {"name": "gaussian-output"},
        SPLIT,
    ],
)
def test_a_releases_parameters_are_settings_and_no_prose(mechanism):
    made = promise(mechanism=PartSection(**mechanism), allow_baseline=True)
    told = json.loads(made.parameters)
    assert not {"WORTH", "UNIT", "ADJACENCY", "BASELINE", "physical_batch", "allow_baseline"} & set(told)
    names = {field.name for field in dataclasses.fields(made.mechanism)} - {"physical_batch", "allow_baseline"}
    assert set(told) == {*names, "records"}


def test_a_reworded_sentence_is_the_same_plan(monkeypatch):
    before = promise().plan_name
    monkeypatch.setattr(DpSgdTraining, "WORTH", "said better")
    monkeypatch.setattr(DpSgdTraining, "BASELINE", True)
    assert promise().plan_name == before


def test_what_only_fits_the_memory_is_the_same_plan_and_what_changes_the_noise_is_another():
    plan = promise().plan_name
    assert promise(mechanism=PartSection(name="dp-sgd", physical_batch=7)).plan_name == plan
    for changed in (
        promise(noise_multiplier=3.0),
        promise(mechanism=PartSection(name="dp-sgd", clip_norm=0.5)),
        promise(mechanism=PartSection(name="dp-sgd", clipping="ghost")),
        promise(training={"warmup_epochs": 1}),
        promise(records=31),
    ):
        assert changed.plan_name != plan


def test_delta_is_a_share_of_the_units_that_are_hidden():
    # 1/(10 * 40,000) rows, against min(1e-5, 1/(10 * 20)) for 20 clients
    assert promise(records=40_000).delta == 2.5e-6
    assert promise(records=40_000, mechanism=PartSection(**SPLIT)).delta == 1e-5
    many = PartSection(**{**SPLIT, "clients": 40_000})
    assert promise(mechanism=many).delta == 2.5e-6


def test_a_delta_above_one_of_n_clients_is_refused_whatever_the_rows():
    # 1/20 clients is .05; 1/200,000 rows is below 1e-5
    assert promise(records=200_000, mechanism=PartSection(**SPLIT), delta=1e-5).delta == 1e-5
    with pytest.raises(SiteConfigError, match=r"delta=0\.06 must be at most 1/n=0\.05"):
        promise(records=10, mechanism=PartSection(**SPLIT), delta=0.06)
