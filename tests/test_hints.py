"""What is said before training: what chooses, what tests, and settings that hardly suit."""

from dataclasses import replace

import pytest
from sentence_transformers import SentenceTransformer

from simcse.config.reading import load_config
from simcse.config.settings import EncoderConfig
from simcse.data.rows import TextCounts
from simcse.encoders import encoder
from simcse.evaluation.own import own_task, own_test
from simcse.evaluation.sources import load_geometry, load_task
from simcse.evaluation.tasks import RetrievalTask
from simcse.training.hints import hints, what_chooses_and_tests
from simcse.training.text import TrainingSet

COUNTS = TextCounts(
    rows=100, empty=0, duplicate=0, truncated=5, sha256="", texts=100, tokens=1000, unknown=0
)


@pytest.fixture(scope="module")
def mini() -> SentenceTransformer:
    return encoder.build(EncoderConfig())


def hints_of(config, settings, counts, model):
    config = load_config(config, settings)
    return list(hints(config, [TrainingSet(config.sets[0], [], counts)], model))


def test_the_data_that_choose_and_that_test_are_named(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("a,b,grade\nx,y,1\nz,w,3\n")
    dev = RetrievalTask("documents-dev", ["a"], ["b"], [{0: 1}])
    pairs, geometry = load_task("pairs", None), load_geometry(None, dev_only=False)
    own = own_task(own_test(f"graded:{file}"))
    assert list(what_chooses_and_tests(dev, [pairs, own, geometry], ["STS13"])) == [
        "chosen   the checkpoint, by documents-dev "
        "(1 queries from held-out documents of data.train)",
        "tested   on pairs (252 pairs that come with the package); "
        "graded:mine.csv (2 pairs of your own); STS13",
        "warning: documents-dev: only 1 queries, so its score is ± 98 points; "
        "raise data.held_out, or bring more documents",
    ]
    assert list(what_chooses_and_tests(pairs, [pairs, geometry], []))[1] == (
        "tested   on pairs, which has chosen it"
    )


def test_a_model_that_is_trained_further_has_a_lower_rate(mini, tmp_path):
    encoder.save(mini, tmp_path / "model")
    name = {"encoder": {"name": str(tmp_path / "model"), "projection": "none"}}
    low, high = (
        hints_of("adapt", {**name, "training.learning_rate": rate}, COUNTS, mini)
        for rate in (1e-6, 2e-4)
    )
    assert low == []
    assert "0.0002 is high for a sentence-transformers model that is good already" in high[0]


@pytest.mark.parametrize(
    ("settings", "counts", "expected"),
    [
        ({}, {}, None),
        ({"training.learning_rate": 3e-5}, {}, "3e-05 is low for a small encoder (3 million"),
        ({"training.learning_rate": 0.1}, {}, "training.learning_rate: 0.1 is high for a small"),
        ({"data.max_length": 32}, {"truncated": 31}, "31% of the texts are cut at 32 tokens"),
        ({}, {"unknown": 60}, "6% of the tokens in data.train are unknown to this encoder"),
    ],
)
def test_settings_that_hardly_suit_are_named(mini, settings, counts, expected):
    found = hints_of("quickstart", settings, replace(COUNTS, **counts), mini)
    assert found == [] if expected is None else expected in found[0] and len(found) == 1
