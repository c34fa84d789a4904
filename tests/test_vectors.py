"""Embeddings in bytes and bits: files, indexes, and what of a score they keep."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import MINI_BERT, SENTENCES
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from sentence_transformers.util.quantization import semantic_search_faiss

from simcse import SimCSE
from simcse.cli.main import main
from simcse.encoders.vectors import Quantizer, bytes_of
from simcse.errors import UserError
from simcse.evaluation.protocol import EmbeddingCache, evaluate
from simcse.evaluation.retention import beside, retention
from simcse.evaluation.tasks import PairTask, RetrievalTask
from simcse.inference import index
from simcse.reports.runs import load_runs
from simcse.reports.tables import retention_rows

KINDS = ("float32", "int8", "uint8", "binary", "ubinary")


def unit(count, width=64, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("width", [64, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_what_sentence_transformers_stores(kind, width):
    vectors = unit(200, width)
    quantizer = Quantizer(kind)
    stored = quantizer(vectors)
    expected = quantize_embeddings(vectors, kind, calibration_embeddings=vectors)
    assert stored.dtype == expected.dtype
    np.testing.assert_array_equal(stored, expected)
    assert stored[0].nbytes == bytes_of(kind, width)
    later = quantizer(unit(50, width, seed=1))  # with the ranges of before
    again = quantize_embeddings(unit(50, width, seed=1), kind, calibration_embeddings=vectors)
    np.testing.assert_array_equal(later, again)


@pytest.mark.parametrize("kind", KINDS)
def test_restored_numbers_are_those_of_a_step_or_a_sign(kind):
    vectors = unit(200, 12)
    quantizer = Quantizer(kind)
    restored = quantizer.restored(quantizer(vectors), 12)
    assert restored.dtype == np.float32 and restored.shape == vectors.shape
    if kind == "float32":
        np.testing.assert_array_equal(restored, vectors)
    elif kind.endswith("int8"):
        low, high = quantizer.ranges
        assert (np.abs(restored - vectors) <= (high - low) / 255 * 0.51).all()
    else:
        np.testing.assert_array_equal(restored > 0, vectors > 0)
        differing = (vectors[0] > 0) != (vectors[1] > 0)  # Hamming distance
        assert restored[0] @ restored[1] == pytest.approx(1 - 2 * differing.mean(), abs=1e-6)


def test_numbers_beyond_the_ranges_are_cut_to_them_and_counted():
    quantizer = Quantizer("int8")
    quantizer(np.array([[0.0, 0.0], [1.0, 0.5]], dtype=np.float32))
    assert (quantizer.numbers, quantizer.beyond) == (4, 0)
    stored = quantizer(np.array([[-1.0, 0.2], [2.0, 0.9]], dtype=np.float32))
    assert stored[:, 0].tolist() == [-128, 127] and stored[1, 1] == 127
    assert (quantizer.numbers, quantizer.beyond) == (8, 3)


def test_a_single_embedding_is_not_calibrated_on():
    with pytest.raises(UserError, match="int8 needs two texts or more to calibrate on"):
        Quantizer("int8")(unit(1))


# The index


def built(vectors, kind, multiplier=4, count=10, queries=None):
    names = [str(number) for number in range(len(vectors))]
    found = index.build(names, list(range(len(vectors))), vectors, None, None, kind)
    return found, index.nearest(found, queries, count, multiplier)


def recall(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)])


def in_groups():
    """Embeddings of 3,000 texts, which lie in 60 groups, and of 100 queries near some of them."""
    chosen = np.random.default_rng(3).integers(0, 60, 3000)
    vectors = unit(60, 256)[chosen] + 0.7 * unit(3000, 256, seed=1)
    queries = vectors[:100] + 0.3 * unit(100, 256, seed=2)
    return (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors, queries))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_recall_against_exact_search(kind):
    vectors, queries = in_groups()
    _, (_, exact) = built(vectors, "float32", queries=queries)
    found = {}
    for multiplier in (1, 4):
        _, (scores, rows) = built(vectors, kind, multiplier, queries=queries)
        assert scores.shape == rows.shape == (100, 10)
        assert (np.diff(scores, axis=1) <= 0).all()
        assert (rows[:, 0] == np.arange(100)).all()
        found[multiplier] = recall(rows, exact)
    if "int8" in kind:
        assert found[1] == found[4] > 0.98
    else:
        assert 0.4 < found[1] < found[4] - 0.03  # rescored with the numbers of the query


def test_rescoring_is_that_of_sentence_transformers():
    pytest.importorskip("faiss")
    vectors, queries = in_groups()
    _, (scores, rows) = built(vectors, "ubinary", 5, 6, queries)
    expected, *_ = semantic_search_faiss(
        queries, quantize_embeddings(vectors, "ubinary"), corpus_precision="ubinary", top_k=6,
        rescore_multiplier=5,
    )  # fmt: skip
    theirs = np.array([[match["corpus_id"] for match in found] for found in expected])
    # Which of the last candidates that differ in as many bits are looked at is nobody's choice.
    assert (rows == theirs).mean() > 0.95
    signs = np.sign(vectors[rows[0]])
    np.testing.assert_allclose(scores[0], signs @ queries[0] / 16, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("count", [2, 5])
def test_loaded_is_what_was_saved(kind, count, tmp_path):
    texts, vectors = list("abcde"), unit(5, 12)
    made = index.build(texts[:2], [1, 2], vectors[:2], None, None, kind)
    index.add(made, texts[2:count], list(range(3, count + 1)), vectors[2:count])
    index.save(made, vectors[0], tmp_path / "i.safetensors")
    sentences, ids, loaded, _ = index.load(tmp_path / "i.safetensors")
    assert (sentences, len(ids)) == (texts[:count], count)
    assert loaded.quantizer.kind == kind
    np.testing.assert_array_equal(loaded.stored, made["index"].stored)
    again = index.build(sentences, ids, loaded, None, None)
    queries = unit(3, 12, seed=4)
    for one, other in zip(
        index.nearest(made, queries, 2), index.nearest(again, queries, 2), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    index.check_target(tmp_path / "i.safetensors")  # an index, so that it may be replaced


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("int8", {"ranges": lambda r: r[:, :11]}, "damaged: its ranges are not those of its emb"),
        ("int8", {"ranges": lambda r: r[::-1]}, "damaged: its ranges"),
        ("int8", {"ranges": lambda r: r * np.nan}, "damaged: its ranges"),
        ("int8", {"ranges": lambda r: r.astype(np.float64)}, "not a saved index: expected"),
        ("int8", {"embeddings": lambda e: e[:, :11]}, r"damaged: \(5, 11\) embeddings"),
        ("binary", {"embeddings": lambda e: e[:, :1]}, r"damaged: \(5, 1\) embeddings, expected"),
        ("binary", {"embeddings": lambda e: e.astype(np.int16)}, "not a saved index: expected"),
        ("float32", {"ranges": lambda _: unit(2)}, "not a saved index: expected"),
    ],
)
def test_what_was_tampered_with_is_refused(kind, change, expected, tmp_path):
    path = tmp_path / "i.safetensors"
    index.save(built(unit(5, 12), kind, queries=unit(1, 12))[0], unit(1, 12)[0], path)
    tensors = load_file(path)
    for name, changed in change.items():
        tensors[name] = np.ascontiguousarray(changed(tensors.get(name)))
    save_file(tensors, path)
    with pytest.raises(UserError, match=expected) as error:
        index.load(path)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """240 texts that differ, one a line."""
    path = tmp_path_factory.mktemp("corpus") / "in.txt"
    lines = [f"{text[:-1]}, number {number}." for text in SENTENCES for number in range(40)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def simcse():
    return SimCSE(MINI_BERT, pooling="mean")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_index_of_few_bytes_in_python(simcse, corpus, kind, tmp_path):
    simcse.build_index(corpus, vectors=kind)
    assert not simcse.is_faiss_index
    texts = corpus.read_text().splitlines()
    queries = texts[::50]
    for query, found in zip(queries, simcse.search(queries, top_k=3), strict=True):
        assert len(found) == 3
        assert query in [match.sentence for match in found]
    simcse.save_index(tmp_path / "i.safetensors")
    small, whole = (tmp_path / "i.safetensors").stat().st_size, 240 * 256 * 4
    assert small < whole
    expected = simcse.search(queries)
    simcse.load_index(tmp_path / "i.safetensors")
    assert simcse.search(queries) == expected
    simcse.add_to_index(["Something else entirely."])
    assert simcse.search("Something else entirely.", top_k=1)[0].id == 240


def test_what_an_index_of_few_bytes_cannot_do_is_one_line(simcse, corpus):
    for words in ({"use_faiss": True}, {"faiss_fast": True}):
        with pytest.raises(UserError, match="vectors: faiss is used with float32 only"):
            simcse.build_index(corpus, vectors="int8", **words)
    with pytest.raises(UserError, match="int8 needs two texts or more"):
        simcse.build_index(["one"], vectors="int8")
    with pytest.raises(UserError, match="build_index: vectors: "):
        simcse.build_index(corpus, vectors="int4")
    with pytest.raises(UserError, match="rescore_multiplier: expected a whole number from 1"):
        SimCSE(MINI_BERT, pooling="mean", rescore_multiplier=0)


def test_more_candidates_are_rescored_where_that_is_asked_for(simcse, corpus, monkeypatch):
    simcse.build_index(corpus, vectors="binary")
    looked_at = []
    original = Quantizer.restored

    def spy(self, stored, dim):
        looked_at.append(len(stored))
        return original(self, stored, dim)

    monkeypatch.setattr(Quantizer, "restored", spy)
    simcse.search("x", top_k=3)
    monkeypatch.setattr(simcse, "rescore_multiplier", 20)
    simcse.search("x", top_k=3)
    assert looked_at == [12, 60]


def test_an_index_of_few_bytes_on_the_command_line(corpus, tmp_path, capsys):
    model = ["--model", str(MINI_BERT), "--pooling", "mean"]
    query = corpus.read_text().splitlines()[7]
    name = str(tmp_path / "i.safetensors")
    words = ["search", query, *model, "--json"]
    made = ["--corpus", str(corpus), "--vectors", "binary"]
    assert main([*words, *made, "--save-index", name]) == 0
    first = capsys.readouterr().out
    assert query in [match["text"] for match in json.loads(first)["matches"]]
    assert main([*words, "--index", name]) == 0
    assert capsys.readouterr().out == first
    assert main([*words, "--index", name, "--vectors", "int8"]) == 2
    assert "--vectors: of a --corpus; an --index has been made" in capsys.readouterr().err


# Files


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        case
        if case in (("int8", ".npy"), ("ubinary", ".parquet"))
        else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(KINDS[1:], (".npy", ".parquet"))
    ],
)
def test_encode_writes_what_the_library_would(corpus, kind, suffix, tmp_path, capsys):
    words = ["encode", str(corpus), "--model", str(MINI_BERT), "--pooling", "mean"]
    output = tmp_path / f"e{suffix}"
    assert main([*words, "-o", str(output), "--vectors", kind]) == 0
    whole = SimCSE(MINI_BERT, pooling="mean").encode(corpus.read_text().splitlines()).numpy()
    expected = quantize_embeddings(whole, kind, calibration_embeddings=whole)
    if suffix == ".npy":
        found = np.load(output)
        assert found.dtype == expected.dtype
    else:
        found = np.array(pq.read_table(output)["embedding"].to_pylist())
    # Embeddings of other batches differ by rounding, which may cross the edge of a step.
    assert np.abs(found.astype(int) - expected).max() <= (1 if "int8" in kind else 255)
    assert (found != expected).mean() < 0.01
    said = capsys.readouterr().out
    assert f"240 embeddings of width {found.shape[1]} ({kind})" in said
    ranges = tmp_path / "e.ranges.npy"
    assert ranges.is_file() == (kind in ("int8", "uint8"))
    if ranges.is_file():
        assert f"{ranges}: what they stand for" in said
        stacked = np.stack([whole.min(axis=0), whole.max(axis=0)])
        np.testing.assert_allclose(np.load(ranges), stacked, atol=1e-5)


def test_ranges_are_those_of_the_first_chunk(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("simcse.inference.streaming.CHUNK", 120)
    words = ["encode", str(corpus), "--model", str(MINI_BERT), "--pooling", "mean"]
    words += ["--vectors", "int8", "-o", str(tmp_path / "a.npy")]
    assert main(words) == 0
    assert "% of the numbers are beyond the ranges of the first texts" in capsys.readouterr().err
    texts = corpus.read_text().splitlines()
    whole = SimCSE(MINI_BERT, pooling="mean").encode(texts).numpy()
    expected = quantize_embeddings(whole, "int8", calibration_embeddings=whole[:120])
    found = np.load(tmp_path / "a.npy").astype(int)
    assert np.abs(found - expected).max() <= 1 and (found != expected).mean() < 0.01
    assert main([*words, "--overwrite"]) == 0  # both files


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--vectors", "int8", "--keep-length"], "--keep-length: --vectors int8 stores normalised"),
        (["--vectors", "int4"], "invalid choice: 'int4'"),
    ],
)
def test_what_vectors_cannot_be_is_one_line(corpus, more, expected, tmp_path, capsys):
    words = ["encode", str(corpus), "--model", str(MINI_BERT), "-o", str(tmp_path / "e.npy")]
    try:
        assert main([*words, *more]) == 2
    except SystemExit as error:
        assert error.code == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_leaves_neither_file(tmp_path, capsys):
    (tmp_path / "one.txt").write_text("Only one.\n")
    words = ["encode", str(tmp_path / "one.txt"), "--model", str(MINI_BERT), "--pooling", "mean"]
    assert main([*words, "--vectors", "uint8", "-o", str(tmp_path / "e.npy")]) == 2
    assert "uint8 needs two texts or more to calibrate on" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["one.txt"]


def test_somebody_elses_ranges_stay(corpus, tmp_path, capsys):
    (tmp_path / "e.ranges.npy").write_text("mine")
    words = ["encode", str(corpus), "--model", str(MINI_BERT), "-o", str(tmp_path / "e.npy")]
    assert main([*words, "--vectors", "int8"]) == 2
    assert "e.ranges.npy: is there, and not known to be of this command" in capsys.readouterr().err
    assert (tmp_path / "e.ranges.npy").read_text() == "mine"
    assert not (tmp_path / "e.npy").exists()


# What of a score is kept


def tasks():
    texts = [f"text {number}" for number in range(40)]
    generator = np.random.default_rng(0)
    pairs = PairTask("p", texts[:20], texts[20:], generator.normal(size=20))
    search = RetrievalTask("s", texts[:20], texts[20:], [{i: 1} for i in range(20)])
    vectors = dict(zip(texts, unit(40, 16) * 3, strict=True))
    return [pairs, search], vectors


def test_retention_is_the_score_of_cut_and_stored_embeddings():
    both, vectors = tasks()
    asked = []

    def encode(texts):
        asked.extend(texts)
        return np.stack([vectors[text] for text in texts])

    cache = EmbeddingCache(encode)
    evaluate(cache, both)
    found = retention(cache, both, [16, 8])
    assert len(asked) == 40  # each text once
    assert [row["bytes"] for row in found[::2]] == [64, 16, 2, 32, 8, 1]
    everything = np.stack(list(vectors.values()))
    for row in found:
        cut = everything[:, : row["dims"]]
        cut = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        if row["vectors"] == "int8":
            cut = (cut - cut.min(axis=0)) // (np.ptp(cut, axis=0) / 255) * (
                np.ptp(cut, axis=0) / 255
            ) + cut.min(axis=0)
        if row["vectors"] == "binary":
            cut = np.sign(cut)
        smaller = dict(zip(vectors, cut, strict=True))
        expected = evaluate(lambda texts, s=smaller: np.stack([s[t] for t in texts]), both)
        tolerance = 0.02 if row["vectors"] == "int8" else 1e-6  # the middle of a step, or its end
        assert row["score"] == pytest.approx(
            expected.value(row["task"], row["metric"]), abs=tolerance
        )


def test_the_table_has_the_share_that_is_kept():
    row = {"task": "p", "metric": "cosine_spearman", "vectors": "float32"}
    whole = [{**row, "dims": 4, "bytes": 16, "score": 0.5}]
    found = beside(
        [*whole, {**row, "dims": 2, "bytes": 8, "score": 0.4}],
        [{"score": -0.1}, {"score": 0.1}],
    )
    head, *rows = retention_rows(found)
    assert head[5:] == ["this model", "kept", "untrained", "kept"]
    assert rows[0] == [
        "p",
        "cosine Spearman",
        "4",
        "float32",
        "16",
        "50.00",
        "100.0%",
        "-10.00",
        "–",
    ]
    assert rows[1][5:7] == ["40.00", "80.0%"]
    assert retention_rows(whole)[0][5:] == ["this model", "kept"]


def test_evaluate_shows_what_is_kept(two_seeds, tmp_path, capsys):
    output = tmp_path / "scores.json"
    words = ["evaluate", str(two_seeds / "seed-0"), "--tasks", "pairs", "-o", str(output)]
    assert main([*words, "--retention"]) == 0
    table = capsys.readouterr().out
    assert "this model" in table and "untrained" in table
    found = json.loads(output.read_text())["retention"]
    assert [(row["dims"], row["vectors"], row["bytes"]) for row in found] == [
        (32, "float32", 128), (32, "int8", 32), (32, "binary", 4),
        (16, "float32", 64), (16, "int8", 16), (16, "binary", 2),
    ]  # fmt: skip
    [run] = load_runs(two_seeds / "seed-0").runs
    assert found[0]["score"] == pytest.approx(run.value("pairs"), abs=1e-6)
    raw = run.raw["mean"]["pairs"]["cosine_spearman"]
    assert found[0]["untrained"] == pytest.approx(raw, abs=1e-6)
    assert load_runs(output).best.retention == found
    capsys.readouterr()
    assert main([*words, "--retention", "--dims", "8"]) == 2
    assert "--retention: shows all sizes; leave --dims out" in capsys.readouterr().err


def test_without_its_start_a_run_is_shown_alone(two_seeds, tiny, tmp_path, capsys, monkeypatch):
    """Code of the start runs no more than any other's, and it may be gone."""
    asked = []

    def gone(config):
        asked.append(config.trust_remote_code)
        raise UserError("encoder.name: gone")

    monkeypatch.setattr("simcse.encoders.encoder.build", gone)
    output = tmp_path / "scores.json"
    words = ["evaluate", str(two_seeds / "seed-0"), "--tasks", "pairs", "-o", str(output)]
    assert main([*words, "--retention"]) == 0
    assert "warning: the untrained encoder is left out: encoder.name: gone" in (
        capsys.readouterr().err
    )
    assert "untrained" not in json.loads(output.read_text())["retention"][0]
    assert asked == [False]
    text = tmp_path / "labels.csv"
    text.write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(20)))
    words = ["evaluate", str(two_seeds / "seed-0"), "--own", f"labelled:{text}", "-o", str(output)]
    assert main([*words, "--retention"]) == 2
    assert "--retention: none of these tasks compares embeddings" in capsys.readouterr().err


def test_a_plain_model_has_no_start(tiny, tmp_path):
    model = SentenceTransformer(str(MINI_BERT))
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    output = tmp_path / "scores.json"
    words = ["evaluate", str(tmp_path / "model"), "--tasks", "pairs", "-o", str(output)]
    assert main([*words, "--retention"]) == 0
    found = json.loads(output.read_text())["retention"]
    assert [row["dims"] for row in found[::3]] == [256, 128, 64, 32, 16]
    assert "untrained" not in found[0]
