"""Embeddings written chunk by chunk: the file is that of one pass, and memory is a chunk's."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import MINI_BERT, SENTENCES
from tqdm import tqdm

from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.data import tokens
from simcse.encoders import encoder
from simcse.encoders.encoding import _PROBE, encode_by_length
from simcse.errors import UserError
from simcse.inference import streaming
from simcse.inference.streaming import Recent, encode_to_file

TEXTS = [f"text {number}" for number in range(23)]


def embed(texts):
    return np.array([[float(text.split()[1]), 1.5] for text in texts], dtype=np.float32)


@pytest.mark.parametrize("chunk", [1, 5, 23, 100])
def test_the_file_is_that_of_one_chunk(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", chunk)
    sizes = []

    def spy(texts):
        sizes.append(len(texts))
        return embed(texts)

    for name in ("e.npy", "e.parquet"):
        assert encode_to_file(iter(TEXTS), spy, tmp_path / name, "x") == (23, 2)
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), embed(TEXTS))
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy", mmap_mode="r"), embed(TEXTS))
    table = pq.read_table(tmp_path / "e.parquet")
    assert table["text"].to_pylist() == TEXTS
    assert np.array(table["embedding"].to_pylist(), dtype=np.float32).tolist() == (
        embed(TEXTS).tolist()
    )
    assert max(sizes) == min(chunk, 23)


def test_texts_are_read_no_further_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", 4)
    read = []

    def texts():
        for text in TEXTS:
            read.append(text)
            yield text

    def stops(chunk):
        assert len(read) <= 4
        raise UserError("enough")

    (tmp_path / "e.npy").write_bytes(b"old")
    with pytest.raises(UserError, match="enough"):
        encode_to_file(texts(), stops, tmp_path / "e.npy", "x")
    assert (tmp_path / "e.npy").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["e.npy"]


def test_long_texts_make_smaller_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "CHARACTERS", 20)  # a text has six or seven
    sizes = []

    def spy(texts):
        sizes.append(len(texts))
        return embed(texts)

    assert encode_to_file(TEXTS, spy, tmp_path / "e.npy", "x") == (23, 2)
    assert sizes == [4, 4, 4, 3, 3, 3, 2]
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), embed(TEXTS))


def test_no_text_is_a_mistake_and_leaves_nothing(tmp_path):
    for name in ("e.npy", "e.parquet"):
        with pytest.raises(UserError, match=r"in\.txt: no text in it"):
            encode_to_file([], embed, tmp_path / name, "in.txt")
    assert not list(tmp_path.iterdir())


def test_repeats_are_embedded_once_and_stand_where_they_stood(tiny):
    model = encoder.build(EncoderConfig(name=str(tiny)))
    texts = [*SENTENCES, *SENTENCES[::-1], "", SENTENCES[2]]
    rows = []
    model[0].register_forward_pre_hook(
        lambda module, inputs: rows.append(len(inputs[0]["input_ids"]))
    )
    found = encode_by_length(model, texts, 4)
    assert rows[len(_PROBE) + 1 :] == [4, 3]  # after a trial, each text alone and all in a batch
    np.testing.assert_allclose(found, model.encode(texts), atol=1e-5)


def test_texts_of_the_latest_chunks_are_not_embedded_again(monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", 3)
    asked = []

    def spy(texts):
        asked.append(texts)
        return embed(texts)

    recent = Recent(spy)
    for chunk in ([0, 1, 0], [1, 2, 3], [1, 2, 3], [4, 0, 1]):
        texts = [TEXTS[number] for number in chunk]
        np.testing.assert_array_equal(recent(texts), embed(texts))
    # 0 was no longer among the latest three when it came again; 1 was.
    assert asked == [[TEXTS[n] for n in chunk] for chunk in ([0, 1], [2, 3], [4, 0])]


def test_the_command_writes_parquet_and_takes_a_role(tiny, tmp_path, capsys):
    model = encoder.build(EncoderConfig(name=str(tiny), towers="two"))
    encoder.save(model, tmp_path / "towers")
    (tmp_path / "in.txt").write_text("\n".join(SENTENCES) + "\n")
    words = ["encode", str(tmp_path / "in.txt"), "--model", str(tmp_path / "towers")]
    output = tmp_path / "e.parquet"
    assert main([*words, "-o", str(output), "--role", "document", "--keep-length"]) == 0
    assert "6 embeddings of width 32" in capsys.readouterr().out
    found = np.array(pq.read_table(output)["embedding"].to_pylist())
    np.testing.assert_allclose(found, model.encode_document(SENTENCES), atol=1e-5)


def test_one_bar_counts_all_texts_of_all_chunks(tiny, tmp_path, monkeypatch):
    shown = []

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})
            shown.append(self)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.setattr("simcse.inference.streaming.CHUNK", 100)
    text = tmp_path / "a.txt"
    text.write_text("".join(f"sentence {i % 150} of many\n" for i in range(230)))
    output = tmp_path / "a.npy"
    assert main(["encode", str(text), "-o", str(output), "--model", str(tiny)]) == 0
    assert [(bar.n, bar.total) for bar in shown] == [(230, 230)]
    assert len(np.load(output)) == 230


def test_a_script_that_the_encoder_cannot_read_is_told(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("我们去散步。\n机器学习模型需要数据。\n")
    for words in (["encode", str(text), "-o", str(tmp_path / "a.npy")],
                  ["search", "散步", "--corpus", str(text)]):  # fmt: skip
        assert main([*words, "--model", str(MINI_BERT)]) == 0
        expected = f"of the tokens in {text} are unknown to this encoder, which cannot tell them"
        assert expected in capsys.readouterr().err
