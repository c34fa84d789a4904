import inspect
import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SENTENCES, make_encoder, make_masked_encoder
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from simcse import SimCSE, load_config, train
from simcse.cli.main import main
from simcse.config.settings import EncoderConfig
from simcse.encoders import encoder, loading
from simcse.errors import UserError
from simcse.reports.runs import load_runs


@pytest.fixture(scope="module")
def model_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    encoder.save(encoder.build(EncoderConfig(name=str(tiny))), folder)
    return folder


@pytest.fixture(scope="module")
def simcse(model_folder):
    return SimCSE(model_folder)


def test_encode_shapes_and_types(simcse):
    assert isinstance(simcse.encode("One."), torch.Tensor)
    assert simcse.encode("One.").shape == (32,)
    assert simcse.encode("One.", keepdim=True).shape == (1, 32)
    assert simcse.encode(SENTENCES).shape == (6, 32)
    assert simcse.encode([]).shape == (0, 32)
    as_numpy = simcse.encode(SENTENCES, return_numpy=True)
    assert isinstance(as_numpy, np.ndarray)
    assert as_numpy.dtype == np.float32


def test_encode_normalises_unless_told_otherwise(simcse):
    unit = simcse.encode(SENTENCES, return_numpy=True)
    raw = simcse.encode(SENTENCES, return_numpy=True, normalize_to_unit=False)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(raw, simcse.model.encode(SENTENCES), atol=1e-6)


def test_max_length_cuts_and_is_put_back(simcse):
    long = "one two three four five six seven"
    np.testing.assert_allclose(
        simcse.encode(long, max_length=5), simcse.encode("one two three"), atol=1e-6
    )
    assert simcse.model.max_seq_length == 64
    with pytest.raises(
        UserError, match="max_length: 65 is out of range; this encoder allows 3 to 64"
    ):
        simcse.encode(long, max_length=65)


def test_max_length_leaves_room_beside_a_prompt(model_folder):
    simcse = SimCSE(model_folder)
    simcse.model.prompts = {"query": "a prompt of several words: ", "document": ""}
    with pytest.raises(UserError, match="max_length: 4: different texts get the same embedding"):
        simcse.encode(SENTENCES, max_length=4)
    assert simcse.encode(SENTENCES, max_length=20).shape == (6, 32)


ODD = (5, 2.5, b"x", {"a": 1}, [1], [["a"]], object(), np.arange(3), torch.ones(2))


def test_arguments_of_another_type_are_one_line(simcse, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("x,y\na,b\n")
    simcse.build_index(["a cat", "a dog"])
    simcse.save_index("i.safetensors")
    before = list(simcse.index["sentences"])
    calls = [
        lambda odd: SimCSE(odd),
        lambda odd: SimCSE(model_folder, odd),
        lambda odd: SimCSE(model_folder, pooling=odd),
        simcse.encode,
        lambda odd: simcse.encode("a", odd),
        lambda odd: simcse.encode("a", return_numpy=odd),
        lambda odd: simcse.encode("a", normalize_to_unit=odd),
        lambda odd: simcse.encode("a", role=odd),
        lambda odd: simcse.build_index("a.csv", column=odd),
        lambda odd: simcse.build_index("a.csv", column="x", separator=odd),
        lambda odd: simcse.build_index("a.csv", column="x", encoding=odd),
        lambda odd: simcse.duplicates("a.csv", column="x", separator=odd),
        lambda odd: simcse.paraphrases("a.csv", column="x", encoding=odd),
        lambda odd: simcse.build_index(["a"], use_faiss=odd),
        lambda odd: simcse.build_index(["a"], faiss_fast=odd),
        simcse.add_to_index,
        simcse.search,
        lambda odd: simcse.search("a", threshold=odd if not isinstance(odd, int | float) else "5"),
        simcse.save_index,
        lambda odd: simcse.save_index("i.safetensors", odd),
        simcse.load_index,
        lambda odd: simcse.load_index("i.safetensors", odd),
        lambda odd: simcse.similarity(odd, "a"),
        load_runs,
        lambda odd: load_runs(model_folder, odd),
        lambda odd: load_config("quickstart", odd),
    ]
    for call, odd in itertools.product(calls, ODD):
        with pytest.raises(UserError) as error:
            call(odd)
        assert "\n" not in str(error.value)
    for count in (True, False):
        for call in (
            lambda count: simcse.search("a", top_k=count),
            lambda count: simcse.encode("a", batch_size=count),
            lambda count: simcse.encode("a", max_length=count),
        ):
            with pytest.raises(UserError, match=f"(expected a whole number|max_length).*{count}"):
                call(count)
    with pytest.raises(UserError, match=r"^gone: not a saved index: no such file$"):
        simcse.load_index("gone")
    with pytest.raises(UserError, match="train: config: Input should be Config, got dict"):
        train({"nonsense": 1})
    for odd in ("5", *ODD[1:]):
        with pytest.raises(UserError, match=r"max_length: .* is out of range"):
            simcse.encode("a", max_length=odd)
    assert simcse.index["sentences"] == before


def test_types_are_named_as_they_are_called(simcse):
    with pytest.raises(UserError) as error:
        simcse.load_index(5)
    assert str(error.value) == "SimCSE.load_index: path: Input should be str | Path, got int"
    with pytest.raises(UserError, match=r"role: Input should be 'query' or 'document', got 'x'$"):
        simcse.encode("a", role="x")
    with pytest.raises(UserError, match=r"vector: Unexpected keyword argument$"):
        simcse.build_index(["a"], vector="int8")
    with pytest.raises(UserError, match=r"^none\.safetensors: not a saved index: no such file$"):
        simcse.load_index("none.safetensors")
    with pytest.raises(UserError, match=r"^device: the list is empty; name one or more$"):
        simcse.encode("a", [])
    one = simcse.encode("a", torch.device("cpu"), batch_size=np.int64(2), max_length=np.int64(5))
    assert torch.equal(one, simcse.encode("a"))


def test_encode_rejects_what_is_not_text(simcse):
    with pytest.raises(UserError, match=r"expected str, got float; leave out .* df\['text'\]"):
        simcse.encode(["a", float("nan")])
    with pytest.raises(UserError, match="sentence 1: expected str, got NoneType"):
        simcse.encode(["fine", None])
    with pytest.raises(UserError, match="sentence 1: lone surrogate character"):
        simcse.encode(["fine", "half \ud83d"])
    with pytest.raises(UserError, match="sentence 0: NUL character"):
        simcse.encode("nul\0")


@pytest.mark.parametrize(
    "several",
    [
        tuple(SENTENCES),
        np.array(SENTENCES),
        np.array(SENTENCES, dtype=object),
        pd.Series(SENTENCES, index=range(6, 0, -1)),
        Dataset.from_dict({"text": SENTENCES})["text"],
        dict.fromkeys(SENTENCES).keys(),
        (sentence for sentence in SENTENCES),
    ],
    ids=lambda several: type(several).__name__,
)
def test_sentences_come_in_anything_that_gives_them_in_order(simcse, several):
    simcse.build_index(several)
    assert simcse.index["sentences"] == SENTENCES
    [(found, _)] = simcse.search(SENTENCES[2], top_k=1)
    assert found == SENTENCES[2]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda s: s.encode(None), "expected a str or several, got NoneType"),
        (lambda s: s.encode(3), "expected a str or several, got int"),
        (lambda s: s.encode(b"bytes"), "expected a str or several, got bytes"),
        (lambda s: s.encode({"text": "x"}), r"got dict; pass one column, such as df\['text'\]"),
        (lambda s: s.encode(pd.DataFrame({"text": ["x"]})), "got DataFrame; pass one column"),
        (lambda s: s.build_index(pd.DataFrame({"text": ["x"]})), "got DataFrame; pass one column"),
        (lambda s: s.add_to_index({"text": "x"}), "got dict; pass one column"),
        (lambda s: s.encode(Dataset.from_dict({"text": ["x"]})), "got Dataset; pass one column"),
        (lambda s: s.encode("x", role="passage"), "role: Input should be 'query' or 'doc"),
        (lambda s: s.encode("x", batch_size=0), "batch_size: expected a whole number from 1 on"),
        (lambda s: s.encode("x", batch_size=2.5), "batch_size: .* got 2.5"),
        (lambda s: s.encode("x", "nowhere"), "device nowhere: "),
        (lambda s: s.encode("x", ["cpu", "nowhere"]), "device nowhere: "),
        (lambda s: s.encode("x", 1.5), "encode: device: Input should be .*, got float"),
        (lambda s: s.search("x", top_k=0), "top_k: expected a whole number from 1 on, got 0"),
        (lambda s: s.search("x", top_k=-1), "top_k: .* got -1"),
        (lambda s: s.search("x", threshold=float("nan")), "threshold: .* -1 to 1, got nan"),
        (lambda s: s.search("x", threshold="0.5"), "threshold: .*, got '0.5'"),
        (lambda s: s.duplicates(["x"], 95), "threshold: .* got 95"),
        (lambda s: s.similarity("x", np.full(32, np.nan)), "keys: hold NaN or infinity"),
        (lambda s: s.paraphrases(["x"], 0), "most: expected a whole number from 1 on, got 0"),
        (lambda s: s.build_index(["x"], ids=3), "ids: expected several, got int"),
        (lambda s: s.search(None), "expected a str or several, got NoneType"),
        (lambda s: s.similarity("x", np.zeros((3, 7))), r"expected embeddings 32 wide, got \(3, 7"),
        (lambda s: SimCSE("x", "cpu", "cls"), "num_cells: expected a whole number from 1 on"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_change_nothing(simcse, call, expected):
    simcse.build_index(SENTENCES)
    before = simcse.index
    with pytest.raises(UserError, match=expected) as error:
        call(simcse)
    assert "\n" not in str(error.value)
    assert simcse.index is before
    assert before["sentences"] == SENTENCES


THEIRS = {  # princeton-nlp/SimCSE, simcse/tool.py, with the defaults
    "__init__": "model_name_or_path, device=None, num_cells=100, num_cells_in_search=10",
    "encode": "sentence, device=None, return_numpy=False, normalize_to_unit=True, keepdim=False, "
    "batch_size=64, max_length=128",
    "similarity": "queries, keys, device=None",
    "build_index": "sentences_or_file_path, use_faiss=None, faiss_fast=False, device=None, "
    "batch_size=64",
    "add_to_index": "sentences_or_file_path, device=None, batch_size=64",
    "search": "queries, device=None, threshold=0.6, top_k=5",
}
OTHER_DEFAULTS = {"model_name_or_path", "max_length", "threshold"}  # named in the class's docstring


@pytest.mark.parametrize("method", THEIRS)
def test_arguments_are_princetons_in_their_order(method):
    function = getattr(SimCSE, method)
    ours = list(inspect.signature(function).parameters.values())[1:]
    theirs = [argument.split("=") for argument in THEIRS[method].split(", ")]
    for parameter, (name, *default) in zip(ours, theirs, strict=False):
        assert parameter.name == name
        if name not in OTHER_DEFAULTS and default:
            assert repr(parameter.default) == default[0]
    # What we add comes after, and has a default.
    assert len(ours) >= len(theirs)
    assert all(p.default is not inspect.Parameter.empty for p in ours[len(theirs) :])


@pytest.mark.parametrize("use_faiss", [False, True])
def test_princetons_readme_with_every_argument_by_position(model_folder, tmp_path, use_faiss):
    if use_faiss:
        pytest.importorskip("faiss")
    model = SimCSE(str(model_folder), "cpu", 100, 10)
    assert (model.device, model.index, model.is_faiss_index) == ("cpu", None, False)
    assert model.tokenizer("A woman is reading.")["input_ids"]
    assert model.encode("A woman is reading.", "cpu", False, True, True, 64, 12).shape == (1, 32)
    assert isinstance(model.encode("A woman is reading.", "cpu", True), np.ndarray)
    sentences = ["A woman is reading.", "A man is playing a guitar."]
    assert model.similarity(sentences, ["He plays guitar.", "A photo."], "cpu").shape == (2, 2)
    corpus = tmp_path / "sentences.of-unknown-kind"
    corpus.write_text("\n".join(sentences) + "  \n\n")
    for source in (sentences, str(corpus)):
        for faiss_fast in (False, True):
            model.build_index(source, use_faiss, faiss_fast, "cpu", 1)
            assert model.is_faiss_index is use_faiss
            assert model.index["sentences"] == sentences
            model.add_to_index(["He plays guitar."], "cpu", 1)
            [(found, score)] = model.search("He plays guitar.", "cpu", 0.5, 1)
            assert (found, score) == ("He plays guitar.", pytest.approx(1, abs=1e-5))
            assert [len(matches) for matches in model.search(sentences, "cpu", -1.0, 3)] == [3, 3]
    assert sentences == ["A woman is reading.", "A man is playing a guitar."]  # not added to


@pytest.mark.slow
def test_several_devices_give_the_same(simcse):
    one = simcse.encode(SENTENCES, return_numpy=True)
    two = simcse.encode(SENTENCES, device=["cpu", "cpu"], return_numpy=True)
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_similarity_shapes_and_values(simcse):
    a, b = SENTENCES[:2], SENTENCES[2:]
    matrix = simcse.similarity(a, b)
    assert matrix.shape == (2, 4)
    row = simcse.similarity(a[0], b)
    assert row.shape == (4,)
    number = simcse.similarity(a[0], b[0])
    assert isinstance(number, float)
    np.testing.assert_allclose(matrix[0], row, atol=1e-6)
    assert number == pytest.approx(float(row[0]), abs=1e-6)
    vectors = simcse.encode(b, return_numpy=True, normalize_to_unit=False)
    np.testing.assert_allclose(simcse.similarity(a, vectors), matrix, atol=1e-5)


@pytest.mark.parametrize("use_faiss", [False, True])
def test_search_finds_the_sentence_itself(simcse, use_faiss):
    if use_faiss:
        pytest.importorskip("faiss")
    simcse.build_index(SENTENCES, use_faiss=use_faiss)
    [(sentence, score), *rest] = simcse.search(SENTENCES[3], threshold=-1, top_k=3)
    assert sentence == SENTENCES[3]
    assert score == pytest.approx(1, abs=1e-5)
    assert len(rest) == 2
    assert simcse.search(SENTENCES[:2], threshold=0.99999)[1][0][0] == SENTENCES[1]
    assert simcse.search("nothing like it", threshold=1.0) == []
    assert len(simcse.search(SENTENCES[0], threshold=-1, top_k=100)) == len(SENTENCES)


def test_faiss_and_exact_search_agree(simcse):
    pytest.importorskip("faiss")
    results = []
    for use_faiss in (False, True, None):
        simcse.build_index(SENTENCES[:3], use_faiss=use_faiss)
        simcse.add_to_index(SENTENCES[3:])
        results.append(simcse.search(SENTENCES, threshold=0.0, top_k=4))
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            assert [s for s, _ in found] == [s for s, _ in expected]
            np.testing.assert_allclose([x for _, x in found], [x for _, x in expected], atol=1e-5)


def test_without_faiss_it_is_named_when_asked_for(simcse, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    simcse.build_index(SENTENCES)
    assert simcse.search(SENTENCES[0])[0][0] == SENTENCES[0]
    with pytest.raises(UserError, match="faiss is not installed; pip install faiss-cpu"):
        simcse.build_index(SENTENCES, use_faiss=True)


def test_index_from_a_file_saved_and_loaded(simcse, model_folder, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n\n".join(SENTENCES) + "\n")
    simcse.build_index(tmp_path / "corpus.txt")
    expected = simcse.search(SENTENCES, threshold=0)
    simcse.save_index(tmp_path / "index.safetensors")
    again = SimCSE(model_folder)
    again.load_index(tmp_path / "index.safetensors")
    assert again.index["sentences"] == SENTENCES
    assert [[s for s, _ in m] for m in again.search(SENTENCES, threshold=0)] == [
        [s for s, _ in m] for m in expected
    ]


def test_broken_or_foreign_index_is_named(simcse, model_folder, tmp_path, tiny):
    with pytest.raises(UserError, match="there is no index"):
        SimCSE(model_folder).search("x")
    path = tmp_path / "index.safetensors"
    with pytest.raises(UserError, match="not a saved index"):
        simcse.load_index(path)
    path.write_bytes(b"mine")
    simcse.build_index(SENTENCES)
    with pytest.raises(UserError, match=r"ending in \.safetensors"):
        simcse.save_index(tmp_path / "index")
    with pytest.raises(UserError, match="is there, and not known to be of this command"):
        simcse.save_index(path)
    simcse.save_index(path, overwrite=True)
    simcse.save_index(path)
    with pytest.raises(UserError, match="made by another model"):
        SimCSE(tiny, pooling="cls").load_index(path)
    wider = SimCSE(make_encoder(tmp_path / "wider", hidden_size=48), pooling="cls")
    with pytest.raises(UserError, match="made by another model"):
        wider.load_index(path)
    assert wider.index is None
    with pytest.raises(UserError, match="there is no index"):
        wider.add_to_index(["x"])


def test_index_from_a_column_of_a_table(simcse, tmp_path):
    table = tmp_path / "corpus.csv"
    table.write_text("a,text\n1,The first row.\n2,The second row.\n")
    simcse.build_index(table, column="text")
    assert simcse.index["sentences"] == ["The first row.", "The second row."]
    with pytest.raises(UserError, match=r"choose columns .*, one column, of a, text"):
        simcse.build_index(table)


def test_missing_device_is_one_line(tiny):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="device cuda: "):
        SimCSE(tiny, device="cuda", pooling="cls")


def test_a_device_that_cannot_compute_and_a_name_that_is_empty_are_one_line(tiny, model_folder):
    for model in (tiny, model_folder):
        for device in ("meta", "hpu", "nonsense"):
            with pytest.raises(UserError, match=f"device {device}: "):
                SimCSE(model, device=device)
    with pytest.raises(UserError, match="the model's name is empty"):
        SimCSE("")


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    [
        ("config.json", "num_hidden_layers", 1_000_000, "num_hidden_layers is 1000000; allowed"),
        ("config.json", "hidden_size", [32], "cannot be loaded|could it be had|can be loaded"),
        (
            "tokenizer_config.json",
            "model_max_length",
            float("nan"),
            "tokenizer_config.json: model_max_length: should be greater than 0, got nan",
        ),
        ("tokenizer_config.json", "pad_token", None, "cannot be used: Asking to pad"),
    ],
)
def test_values_that_no_model_can_have_are_one_line(
    tiny, model_folder, tmp_path, file, key, value, expected
):
    for number, model in enumerate((tiny, model_folder)):
        folder = shutil.copytree(model, tmp_path / str(number))
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**values, key: value}))
        with pytest.raises(UserError, match=expected) as error:
            SimCSE(folder)
        assert "\n" not in str(error.value)


def test_the_default_model_comes_with_the_package_and_knows_what_is_similar():
    simcse = SimCSE()
    assert simcse.encode("x").shape == (256,)
    assert simcse.encode("x", return_numpy=True).dtype == np.float32
    other = simcse.similarity("A child is playing outside.", "The price of oil has fallen.")
    same = simcse.similarity("A child is playing outside.", "A kid plays in the garden.")
    assert same > other + 0.4


def test_plain_encoder_says_which_pooling_it_assumes(tiny, caplog):
    assumed = SimCSE(tiny).encode(SENTENCES)
    assert "assuming mean pooling" in caplog.text
    caplog.clear()
    assert torch.equal(SimCSE(tiny, pooling="mean").encode(SENTENCES), assumed)
    assert not torch.equal(SimCSE(tiny, pooling="cls").encode(SENTENCES), assumed)
    assert not caplog.text


def test_stored_pooling_cannot_be_contradicted(model_folder):
    with pytest.raises(UserError, match="stores its own pooling"):
        SimCSE(model_folder, pooling="cls")


def test_missing_and_damaged_models_are_one_line(tmp_path, model_folder):
    with pytest.raises(UserError, match="neither a model folder here"):
        SimCSE("no/such-model")
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(UserError, match=r"modules\.json: not valid JSON") as error:
        SimCSE(tmp_path)
    assert "\n" not in str(error.value)


def test_released_checkpoints_get_the_pooling_they_were_trained_with(tmp_path, monkeypatch):
    assert len(loading.RELEASES) == 8
    assert loading.RELEASES["princeton-nlp/sup-simcse-roberta-large"] == "pooler"
    folder = make_encoder(tmp_path / "released")  # a plain BERT with a pooler, as they are
    tokenizer, plain = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = plain.eval()(**inputs)
    monkeypatch.setattr(encoder, "source_of", lambda name, revision=None: str(folder))
    copy = tmp_path / "sup-simcse-bert-base-uncased"  # a local copy that has kept its name
    shutil.copytree(folder, copy)
    for name, expected in (
        ("princeton-nlp/unsup-simcse-bert-base-uncased", output.last_hidden_state[:, 0]),
        ("princeton-nlp/sup-simcse-bert-base-uncased", output.pooler_output),
        (str(copy), output.pooler_output),
    ):
        got = SimCSE(name).encode(SENTENCES, normalize_to_unit=False)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def unconverted(folder, name):
    """A supervised checkpoint as princeton-nlp/SimCSE's training writes it."""
    weights = {
        f"mlp.{key.removeprefix('pooler.')}" if "pooler" in key else f"bert.{key}": value
        for key, value in load_file(folder / "model.safetensors").items()
    }
    copy = shutil.copytree(folder, folder.parent / name)
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    return copy


def test_the_pooler_of_a_checkpoint_is_a_pooling(tmp_path, capsys):
    folder = make_encoder(tmp_path / "converted")
    tokenizer, plain = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = plain.eval()(**inputs).pooler_output
    released = unconverted(folder, "sup-simcse-bert-base-uncased")
    other = unconverted(folder, "mine")
    for name, pooling in ((folder, "pooler"), (released, None), (other, "pooler")):
        got = SimCSE(name, pooling=pooling).encode(SENTENCES, normalize_to_unit=False)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    model = SimCSE(folder, pooling="pooler").model
    encoder.save(model, tmp_path / "saved")
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(again.encode(SENTENCES), model.encode(SENTENCES))
    assert not any("pooler" in name for name, _ in again.named_parameters())
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    command = ["encode", str(tmp_path / "a.txt"), "-o", str(tmp_path / "e.npy"), "--keep-length"]
    assert main([*command, "--model", str(other), "--pooling", "pooler"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-6)


def test_without_the_pooler_s_weights_there_is_no_such_pooling(tmp_path):
    masked = make_masked_encoder(tmp_path / "sup-simcse-bert-base-uncased")
    headless = make_encoder(tmp_path / "distilbert", "distilbert")
    for folder, pooling in ((masked, None), (masked, "pooler"), (headless, "pooler")):
        with pytest.raises(UserError, match=f"{folder} has no weights of a pooler"):
            SimCSE(folder, pooling=pooling)


def test_two_towers_embed_queries_and_corpus_apart(tiny, tmp_path):
    config = EncoderConfig(name=str(tiny), towers="two")
    model = encoder.build(config)
    with torch.no_grad():
        for parameter in model[0].sub_modules["document"].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    encoder.save(model, tmp_path / "towers")
    simcse = SimCSE(tmp_path / "towers")
    simcse.build_index(SENTENCES, use_faiss=False)
    query = simcse.model.encode_query(SENTENCES[:1], normalize_embeddings=True)
    corpus = simcse.model.encode_document(SENTENCES, normalize_embeddings=True)
    expected = dict(zip(SENTENCES, (query @ corpus.T)[0], strict=True))
    found = simcse.search(SENTENCES[0], threshold=-1, top_k=6)
    assert dict(found) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(
        simcse.similarity(SENTENCES[0], SENTENCES), list(expected.values()), atol=1e-5
    )


def test_a_static_embedding_is_used_but_cuts_no_texts(tiny, tmp_path, capsys):
    words = StaticEmbedding(Tokenizer.from_file(str(tiny / "tokenizer.json")), embedding_dim=8)
    SentenceTransformer(modules=[words]).save(str(tmp_path / "static"))
    simcse = SimCSE(tmp_path / "static", device="cpu")
    expected = simcse.model.encode(SENTENCES, normalize_embeddings=True)
    np.testing.assert_allclose(simcse.encode(SENTENCES), expected, atol=1e-6)
    with pytest.raises(UserError, match="max_length: StaticEmbedding cuts no texts"):
        simcse.encode(SENTENCES, max_length=5)
    words = ["train", "quickstart", f"encoder.name={tmp_path / 'static'}"]
    assert main([*words, f"output={tmp_path / 'run'}"]) == 2
    message = capsys.readouterr().err
    assert "begins with the module StaticEmbedding; only models that begin with" in message
    assert message.count("\n") == 1


def test_a_match_is_a_pair_that_knows_its_row_or_the_users_id(simcse, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(SENTENCES))
    for source, rows in ((SENTENCES, range(6)), (path, range(0, 12, 2))):
        simcse.build_index(source)
        matches = simcse.search(SENTENCES[3], top_k=6)
        assert len(matches) == 6  # without a threshold all
        assert {match.id: match.sentence for match in matches} == dict(
            zip(rows, SENTENCES, strict=True)
        )
        sentence, similarity = matches[0]
        assert (sentence, matches[0].similarity) == (SENTENCES[3], similarity)
    simcse.build_index(SENTENCES[:3], ids=["a", 7, np.int64(3)])
    simcse.add_to_index(SENTENCES[3:5])
    simcse.add_to_index(SENTENCES[5:], ids=["z"])
    assert simcse.index["ids"] == ["a", 7, 3, 8, 9, "z"]
    simcse.save_index(tmp_path / "i.safetensors")
    simcse.load_index(tmp_path / "i.safetensors")
    assert simcse.search(SENTENCES[5], top_k=1)[0].id == "z"
    with pytest.raises(UserError, match="ids: 1 for 2 sentences"):
        simcse.build_index(SENTENCES[:2], ids=[1])
    with pytest.raises(UserError, match="ids: expected whole numbers or texts, got float"):
        simcse.build_index(SENTENCES[:2], ids=[1.5, 2.5])


def test_near_duplicates_and_paraphrases_are_rows(simcse):
    texts = [SENTENCES[0], SENTENCES[3], SENTENCES[0], SENTENCES[5], SENTENCES[3]]
    assert simcse.duplicates(texts, threshold=0.9999) == [[0, 2], [1, 4]]
    assert simcse.duplicates(texts[:1]) == simcse.paraphrases(texts[:1]) == []
    best = simcse.paraphrases(texts, most=2)
    assert sorted((i, j) for i, j, _ in best) == [(0, 2), (1, 4)]
    assert [similarity for *_, similarity in best] == pytest.approx([1, 1], abs=1e-5)


def test_a_library_call_shows_no_bars(model_folder, capfd):
    SimCSE(model_folder).encode(SENTENCES)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
