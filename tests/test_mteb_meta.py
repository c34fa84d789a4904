"""``simcse mteb-meta``: what is printed is Python that mteb's own class accepts."""

import re
from types import SimpleNamespace

import mteb
import pytest
from hub_server import commits, only_hub
from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper
from mteb.models.model_meta import ScoringFunction

from simcse.cli.main import main
from simcse.config.reading import validate
from simcse.errors import UserError
from simcse.publishing.mteb_meta import _training_data

NAME = "me/small"


def printed_meta(text):
    source = text[text.index("model = ") : text.index("# Add it")]
    names = {
        "ModelMeta": ModelMeta,
        "SentenceTransformerEncoderWrapper": SentenceTransformerEncoderWrapper,
        "ScoringFunction": ScoringFunction,
    }
    exec(source, names)
    return names["model"]


def test_a_published_run_is_described(two_seeds, tmp_path, monkeypatch, one_picture, capsys):
    run = two_seeds / "seed-0"
    with only_hub(monkeypatch, tmp_path / "hub-cache", lfs_bytes=1 << 16) as hub:
        assert main(["publish", str(run), NAME]) == 0
        commit = re.search(r"commit (\w{40})", capsys.readouterr().out)[1]
        assert commits(hub, NAME) >= 1
        assert main(["mteb-meta", str(run), NAME]) == 2  # text and encoder are of this machine
        error = capsys.readouterr().err
        assert "train.txt" in error and "--trained-on A,B" in error
        assert main(["mteb-meta", str(run), NAME, "--trained-on", "STS13,wikipedia"]) == 0
        text = capsys.readouterr().out
        meta = printed_meta(text)
        assert (meta.name, meta.revision) == (NAME, commit)
        assert meta.training_datasets == {"STS13", "wikipedia"}
        assert meta.is_zero_shot_on(["STS13"]) is False
        assert meta.embed_dim == 32 and meta.n_embedding_parameters == 8192 * 32
        assert f"simcse evaluate {NAME} --tasks" in text
        assert (
            f"mteb submit-results --output-folder outputs/evaluation/me--small/mteb --models {NAME}"
            in text
        )
        assert "to fill in by hand: release_date, languages, license" in text
        assert main(["mteb-meta", str(run), NAME, "--trained-on", "unknown"]) == 0
        assert printed_meta(capsys.readouterr().out).is_zero_shot_on(["STS13"]) is None
        other = two_seeds / "seed-1"
        assert main(["mteb-meta", str(other), NAME, "--trained-on", "unknown"]) == 2
        assert "is not the model of" in capsys.readouterr().err


def test_what_was_seen_is_named_as_mteb_names_it():
    path = mteb.get_task("STS13").metadata.dataset["path"]
    values = {"data": {"train": [path]}, "evaluation": {"dev": "STSB", "data": "."}}
    made_from = {"from_hub": [path], "encoder_commit": None, "encoder_card": {}}
    config = validate({**values, "encoder": {"name": "mini-bert"}}, "test")
    found = _training_data(config, made_from, None)
    assert found == {path, "STS13", "STSBenchmark"}  # its dev part chose the checkpoint
    shipped = validate({"data": {"train": ["python-docs"], "form": "documents"}}, "test")
    assert _training_data(shipped, {**made_from, "from_hub": []}, None) == {"python-docs"}
    local = validate({**values, "encoder": {"name": "./encoder"}}, "test")
    with pytest.raises(UserError, match=r"\./encoder: mteb has to know"):
        _training_data(local, made_from, None)
    helpers = SimpleNamespace(helpers={"teacher": ("./teacher", None)})
    with pytest.raises(UserError, match=r"\./teacher: mteb has to know"):
        _training_data(config.model_copy(update={"objective": helpers}), made_from, None)
