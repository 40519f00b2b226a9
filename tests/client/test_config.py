"""A site's file is refused if it could not do what its owner means, with the ways out."""

import pytest

from client.config import SelectorSection, SiteConfigError, load_site, write_site


@pytest.mark.parametrize("release", [[], ["counts"], ["counts", "class-tables"]])
def test_a_selector_that_may_tell_nobody_is_refused_and_both_ways_out_are_named(site_file, change, release):
    change(site_file, selector=SelectorSection(name="kmeans-ratio"), policy={"release": release})
    with pytest.raises(SiteConfigError) as refused:
        load_site(site_file)
    said = str(refused.value)
    assert said.startswith(f"{site_file}: policy.release={release} lets nothing leave of what [selector] finds: add ")
    assert '"abstentions"' in said
    assert '"scores"' in said


@pytest.mark.parametrize(
    ("release", "abstains"),
    [(["abstentions"], True), (["scores"], False), (["scores", "abstentions", "counts"], True)],
)
def test_a_selector_makes_a_site_abstain_only_if_its_owner_lets_that_leave(site_file, change, release, abstains):
    change(site_file, selector=SelectorSection(name="kmeans-ratio"), policy={"release": release})
    assert load_site(site_file).abstains is abstains


def test_a_selector_without_a_policy_may_stay_for_nothing_leaves(site_file):
    without = load_site(site_file).model_copy(update={"policy": None})
    write_site(site_file, without.model_copy(update={"selector": SelectorSection(name="kmeans-ratio")}))
    config = load_site(site_file)
    assert (config.limits(), config.abstains) == (None, False)


def test_a_policy_without_a_selector_needs_no_release(site_file):
    assert load_site(site_file).limits().release == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('release = ["votes"]', "policy.release.0: Input should be 'abstentions', 'scores'"),
        ("abstain = true", "policy.abstain: Extra inputs are not permitted"),
    ],
)
def test_what_the_policy_does_not_know_is_refused_by_name(site_file, line, says):
    site_file.write_text(site_file.read_text().replace("release = []", line))
    with pytest.raises(SiteConfigError, match=says):
        load_site(site_file)
