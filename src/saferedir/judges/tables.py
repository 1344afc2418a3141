"""Raw scores as a file, one row an image: CSV, or Parquet (extra `bench`)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saferedir.errors import JudgeError
from saferedir.judges.base import Scores
from saferedir.utils.extras import require_extra
from saferedir.utils.file_names import shown_name
from saferedir.utils.files import replacing


def write_scores(path: Path, names: Sequence[str], scores: Scores) -> None:
    """Write a column "file" and one column a label; the suffix of the path, .csv or .parquet, says how.

    Bytes of a name that are no UTF-8 are escaped (`file_names.shown_name`). CSV keeps nine digits, enough for every
    float32 to be read back as it was. The file appears when all is written.
    """
    names = [shown_name(name) for name in names]
    values: np.ndarray[Any, np.dtype[np.float32]] = scores.values.numpy()
    if path.suffix == ".parquet":
        arrow = require_extra("pyarrow", "bench", "a Parquet file")
        parquet = require_extra("pyarrow.parquet", "bench", "a Parquet file")
        columns = {label: values[:, column] for column, label in enumerate(scores.labels)}
        with replacing(path) as temporary:
            parquet.write_table(arrow.table({"file": names, **columns}), temporary)
    elif path.suffix == ".csv":
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", *scores.labels])
            writer.writerows(
                [name, *(f"{value:.9g}" for value in row)] for name, row in zip(names, values, strict=True)
            )
    else:
        raise JudgeError(f"{path.name} has the suffix {path.suffix!r}, expected .csv or .parquet.")
