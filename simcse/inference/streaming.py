"""Embeddings of a file of any size: read, embedded and written in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.lib import format as npy

from simcse.data.tokens import in_chunks
from simcse.errors import UserError
from simcse.files import replacing

CHUNK = 20_000  # texts in memory at a time; enough of them that batches of like length can be made


class EmbeddingFile(Protocol):
    """A file that takes embeddings chunk by chunk."""

    def write(self, texts: list[str], embeddings: np.ndarray) -> None:
        """Append rows: their texts, and embeddings float32 ``(texts, dim)``."""

    def close(self) -> None:
        """Finish the file."""


class NpyFile:
    """An array float32 ``(texts, dim)`` as numpy saves it; row i is text i."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.rows = 0
        self.width = 0

    def write(self, texts: list[str], embeddings: np.ndarray) -> None:
        """See :class:`EmbeddingFile`."""
        if not self.rows:
            self.width = embeddings.shape[1]
            self._header()
        self.file.write(np.ascontiguousarray(embeddings, dtype="<f4").tobytes())
        self.rows += len(embeddings)

    def close(self) -> None:
        """Write the number of rows; numpy leaves room for a longer one in the header."""
        self.file.seek(0)
        self._header()
        self.file.close()

    def _header(self) -> None:
        shape = (self.rows, self.width)
        npy.write_array_header_1_0(
            self.file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )


class ParquetFile:
    """Columns ``text`` and ``embedding`` (a list of float32 of one length)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: pa.parquet.ParquetWriter | None = None

    def write(self, texts: list[str], embeddings: np.ndarray) -> None:
        """See :class:`EmbeddingFile`."""
        flat = pa.array(np.ascontiguousarray(embeddings, dtype=np.float32).reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
        table = pa.table({"text": texts, "embedding": vectors})
        if self.writer is None:
            self.writer = pa.parquet.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        """See :class:`EmbeddingFile`."""
        if self.writer is not None:
            self.writer.close()


FORMATS: dict[str, Callable[[Path], EmbeddingFile]] = {".npy": NpyFile, ".parquet": ParquetFile}


def encode_to_file(
    texts: Iterable[str], encode: Callable[[list[str]], np.ndarray], output: Path, source: str
) -> tuple[int, int]:
    """Embed texts into a file that appears whole or not at all.

    Args:
        texts: In any number; a chunk of at most :data:`CHUNK` of them is held.
        encode: Gives float32 ``(texts, dim)``.
        output: Ends in one of :data:`FORMATS`; an old file is replaced when all is done.
        source: Name of where the texts come from, for errors.

    Returns:
        Rows and width.

    Raises:
        UserError: There is no text, or the name ends otherwise.
    """
    make = check_name(output)
    rows = width = 0
    with replacing(output) as temporary:
        file = make(temporary)
        try:
            for chunk in in_chunks(texts, CHUNK, len):
                embeddings = encode(chunk)
                file.write(chunk, embeddings)
                rows, width = rows + len(chunk), embeddings.shape[1]
        finally:
            file.close()
        if rows == 0:
            raise UserError(f"{source}: no text in it")
    return rows, width


def check_name(output: Path) -> Callable[[Path], EmbeddingFile]:
    """What writes a file of this name.

    Raises:
        UserError: It has no known ending.
    """
    if output.suffix not in FORMATS:
        raise UserError(f"-o {output}: expected a name that ends in {' or '.join(FORMATS)}")
    return FORMATS[output.suffix]
