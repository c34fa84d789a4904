"""The table of published scores is consistent, and can be asked for."""

import pytest

from simcse.errors import UserError
from simcse.evaluation.names import STS
from simcse.evaluation.paper_results import comparison, find, paper_results


def test_averages_follow_from_the_scores():
    for entry in paper_results():
        assert 50 < entry.average < 90, entry.slug
        if entry.scores is None:
            continue
        assert len(entry.scores) == 7
        # As printed; papers average before rounding, which moves the last digit or two.
        assert sum(entry.scores) / 7 == pytest.approx(entry.average, abs=0.035), entry.slug


def test_every_entry_has_a_source_and_a_name_of_its_own():
    entries = paper_results()
    assert len({entry.slug for entry in entries}) == len(entries)
    assert all("https://" in entry.source for entry in entries)


def test_find_and_comparison():
    [simcse] = find("bert-base-unsup/SimCSE")
    assert (simcse.average, simcse.scores[0]) == (76.25, 68.40)
    group = find("bert-base-unsup")
    assert simcse in group and len(group) > 10
    mine = {name: {"cosine_spearman": 0.5} for name in STS}
    text = comparison("mine", mine, group)
    [row] = [line for line in text.splitlines() if line.startswith("mine")]
    assert row.split()[-1] == "50.00"
    assert "mean of 50 seeds" in text
    del mine["STS14"]
    row = comparison("mine", mine, [simcse]).splitlines()[3].split()
    assert row == ["mine", *["50.00"] * 6]  # no average of six
    with pytest.raises(UserError, match=r"bert-base-unsupervised: unknown \(did you mean"):
        find("bert-base-unsupervised")
    with pytest.raises(UserError, match=r"unknown \(did you mean bert-base-unsup/SimCSE"):
        find("bert-base-unsup/SimCES")
