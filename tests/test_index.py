"""The index as a file: what was saved is loaded, and nothing else is."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from simcse import SimCSE
from simcse.errors import UserError
from simcse.inference import index

TEXTS = ["one", "two\nlines", "", "日本", "five"]
IDS = [7, "b", 2, "", 0]
PROBE = np.full(8, 8**-0.5, dtype=np.float32)


def unit(count, width=8, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def path(tmp_path):
    built = index.build(list(TEXTS), list(IDS), unit(5), use_faiss=False, cells=None)
    index.save(built, PROBE, tmp_path / "i.safetensors")
    return tmp_path / "i.safetensors"


@pytest.mark.parametrize("use_faiss", [False, True])
@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("cells", [None, index.Cells(3, 1)])
def test_loaded_is_what_was_saved(tmp_path, use_faiss, count, cells):
    if use_faiss:
        pytest.importorskip("faiss")
    first = count // 2
    built = index.build(TEXTS[:first], IDS[:first], unit(5)[:first], use_faiss, cells)
    index.add(built, TEXTS[first:count], IDS[first:count], unit(5)[first:count])
    index.save(built, PROBE, tmp_path / "i.safetensors")
    sentences, ids, embeddings, probe = index.load(tmp_path / "i.safetensors")
    assert (sentences, ids) == (TEXTS[:count], IDS[:count])
    np.testing.assert_array_equal(embeddings, unit(5)[:count])
    np.testing.assert_array_equal(probe, PROBE)


def test_approximate_search_is_exact_over_all_cells_and_partial_over_one():
    pytest.importorskip("faiss")
    embeddings, names = unit(300), [str(number) for number in range(300)]
    exact = index.build(names, names, embeddings, False, None)
    exact = index.nearest(exact, embeddings[:9], 300)
    all_cells = index.build(names, names, embeddings, True, index.Cells(5, 5))
    for found, expected in zip(index.nearest(all_cells, embeddings[:9], 300), exact, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    one_cell = index.build(names, names, embeddings, True, index.Cells(5, 1))
    rows = index.nearest(one_cell, embeddings[:9], 300)[1]
    assert rows[:, 0].tolist() == list(range(9))
    assert (rows[:, -1] == -1).all()


def change(**changes):
    """A saved index with other tensors; each change takes the tensor and gives the new one."""
    return lambda tensors: tensors | {name: f(tensors[name]) for name, f in changes.items()}


def text(content):
    return lambda _: np.frombuffer(content, dtype=np.uint8)


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (change(embeddings=lambda e: e[:4]), r"damaged: \(4, 8\) embeddings, expected \(5, 8\)"),
        (change(embeddings=lambda e: e[:, :7]), r"damaged: \(5, 7\) embeddings"),
        (change(embeddings=lambda e: e[0]), r"damaged: \(8,\) embeddings"),
        (change(embeddings=lambda e: e.reshape(5, 4, 2)), r"damaged: \(5, 4, 2\) embeddings"),
        (change(embeddings=lambda e: e * 2), "an embedding is not of length 1"),
        (change(embeddings=lambda e: e * np.nan), "an embedding is not of length 1"),
        (change(embeddings=lambda e: e * 1e38), "an embedding is not of length 1"),
        (change(embeddings=lambda e: e.astype(np.float64)), "not a saved index: expected"),
        (change(probe=lambda p: p.reshape(2, 4)), "damaged"),
        (change(probe=lambda p: p[0].reshape(())), "damaged"),
        (change(sentences=text(b"a\0b\0")), r"damaged: \(5, 8\) embeddings, expected \(2, 8\)"),
        (change(sentences=text(b"a\0b\0c\0d\0e\0f")), "damaged"),
        (change(sentences=text(b"\0" * 1000)), r"damaged: \(5, 8\) embeddings"),
        (change(sentences=text(b"a\0\xff\0c\0d\0e\0")), "not a saved index: 'utf-8' codec"),
        (change(ids=text(b"[1, 2]")), "damaged: 2 ids of 5 sentences"),
        (change(ids=text(b"[1, 2, 3, 4, null]")), "damaged: its ids are no list of numbers"),
        (change(ids=text(b'{"a": 1}')), "damaged: its ids are no list of numbers"),
        (change(ids=text(b"[" * 99999)), "not a saved index: "),
        (change(ids=text(b"\xff")), "not a saved index: "),
        (change(sentences=lambda s: s.astype(np.int64)), "not a saved index: expected"),
        (lambda tensors: {"embeddings": tensors["embeddings"]}, "not a saved index: File does not"),
    ],
)
def test_what_was_tampered_with_is_refused(path, tamper, expected):
    tensors = {name: np.ascontiguousarray(t) for name, t in tamper(load_file(path)).items()}
    save_file(tensors, path)
    with pytest.raises(UserError, match=expected) as error:
        index.load(path)
    assert "\n" not in str(error.value)


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embeddings.npy", bytes(10**6))


def terabytes(path):
    entry = {"dtype": "F32", "shape": [2**30, 256], "data_offsets": [0, 2**40]}
    header = json.dumps({"embeddings": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    "write",
    [
        zip_bomb,
        terabytes,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(struct.pack("<Q", 2**62)),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: save_torch(
            {name: torch.zeros(3, dtype=torch.bfloat16) for name in index._TENSORS}, path
        ),
    ],
    ids=["zip", "terabytes", "empty", "header", "cut", "missing", "folder", "bfloat16"],
)
def test_other_files_are_refused(path, write):
    write(path)
    with pytest.raises(UserError, match="not a saved index: ") as error:
        index.load(path)
    assert "\n" not in str(error.value)


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_is_refused_or_harmless(tmp_path_factory, position, byte):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    index.save(index.build(list(TEXTS), list(IDS), unit(5), False, None), PROBE, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        sentences, _, embeddings, _ = index.load(path)
    except UserError:
        return
    assert len(sentences) == len(embeddings)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-2)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_graph_of_neighbours_finds_what_the_exact_search_does(tiny, text_file, tmp_path, loaded):
    pytest.importorskip("faiss")
    simcse = SimCSE(tiny, "cpu", pooling="mean")
    queries = text_file.read_text().splitlines()[::9]
    simcse.build_index(text_file, use_faiss=False)
    expected = [[match.id for match in found] for found in simcse.search(queries, top_k=5)]
    if loaded:
        simcse.save_index(tmp_path / "i.safetensors")
        simcse.load_index(tmp_path / "i.safetensors", faiss_fast="hnsw")
    else:
        simcse.build_index(text_file, faiss_fast="hnsw")
    assert type(simcse.index["index"]).__name__ == "IndexHNSWFlat"
    found = [[match.id for match in one] for one in simcse.search(queries, top_k=5)]
    assert [set(ids) for ids in found] == [set(ids) for ids in expected]
    simcse.add_to_index(["An entirely new sentence about whales."])
    assert simcse.search("An entirely new sentence about whales.", top_k=1)[0].similarity > 0.999
    simcse.save_index(tmp_path / "again.safetensors")  # its vectors can be had back


def test_a_graph_of_neighbours_without_faiss_is_refused(tiny):
    simcse = SimCSE(tiny, "cpu", pooling="mean")
    with pytest.raises(UserError, match="faiss_fast: hnsw needs faiss"):
        simcse.build_index(["a cat", "a dog"], use_faiss=False, faiss_fast="hnsw")
    assert simcse.index is None
