"""Finding image files and their classes in a CSV beside a folder of images."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path

import numpy as np

from loaders.sources import TRAIN_NAMES, VAL_NAMES, DataError, Source, join_names, list_paths, split_source

logger = logging.getLogger("headrace")

_Row = tuple[str, str, str | None]  # path, label, split


def find_in_csv(
    table: Path,
    image_root: Path | None,
    path_column: str,
    label_column: str,
    split_column: str,
    val_fraction: float,
    seed: int,
    show_progress: bool = True,
) -> Source:
    """List the files that a CSV names, with their labels.

    Paths are relative to ``image_root`` (the CSV's own folder when None) or absolute. Classes are the labels, sorted:
    as numbers when all of them are whole numbers, as text otherwise. A split column, where there is one, says
    ``train`` or ``val`` (or ``valid``, ``validation``, ``test``; test rows are left out beside val rows); without one
    the files are split: see ``stratified_split``.

    Raises:
        DataError: the CSV, a column or a file is missing, or a row is incomplete.
    """
    rows = _read_rows(table, path_column, label_column, split_column)
    root = os.path.abspath(os.path.expanduser(image_root if image_root is not None else table.parent))
    if not os.path.isdir(root):
        raise DataError(f"the image root {root} is not a folder; --image-root is the folder that the paths start from")
    labels = {label for _, label, _ in rows}
    classes = tuple(sorted(labels, key=int) if all(map(_is_whole, labels)) else sorted(labels))
    number = {label: index for index, label in enumerate(classes)}
    labels_of_rows = np.array([number[label] for _, label, _ in rows], np.int64)
    listing, missing = list_paths((os.path.join(root, path) for path, _, _ in rows), labels_of_rows, show_progress)
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(rows)} files named in {table} do not exist, first {missing[0]}; paths are "
            f"taken relative to {root}: give another folder with --image-root, or repair the rows"
        )
    if rows[0][2] is None:
        return split_source(classes, listing, root, val_fraction, seed)
    split = np.array([row[2] for row in rows])
    held_out = split != "train"
    if (split == "test").any() and (held_out & (split != "test")).any():
        logger.info("%s: %d test rows are left out", table, (split == "test").sum())
        held_out &= split != "test"
    source = Source(classes, listing.select(split == "train"), listing.select(held_out))
    for rows_of, what in ((source.train, "train"), (source.val, "val")):
        if not len(rows_of):
            raise DataError(f"column {split_column!r} of {table} has no {what} rows")
    return source


def _read_rows(table: Path, path_column: str, label_column: str, split_column: str) -> list[_Row]:
    """Return the rows; the split is None throughout when there is no such column."""
    rows: list[_Row] = []
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=head.count))
            header = [name.strip() for name in next(reader, [])]
            for column, option in ((path_column, "--path-column"), (label_column, "--label-column")):
                if column not in header:
                    raise DataError(
                        f"{table} has no column {column!r}: choose one with {option}; there are: {join_names(header)}"
                    )
            path_at, label_at = header.index(path_column), header.index(label_column)
            split_at = header.index(split_column) if split_column in header else None
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header) or not row[path_at].strip() or not row[label_at].strip():
                    raise DataError(f"line {reader.line_num} of {table} is incomplete: {row}")
                split = None
                if split_at is not None:
                    split = row[split_at].strip().lower()
                    if split not in TRAIN_NAMES + VAL_NAMES:
                        raise DataError(
                            f"line {reader.line_num} of {table}: {split_column} is {row[split_at]!r}, not train or val"
                        )
                    split = "train" if split in TRAIN_NAMES else split
                rows.append((row[path_at].strip(), row[label_at].strip(), split))
    except OSError as error:
        raise DataError(f"cannot read {table}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a CSV in UTF-8: {error}") from error
    if not rows:
        raise DataError(f"{table} has no rows")
    return rows


def _is_whole(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdigit()
