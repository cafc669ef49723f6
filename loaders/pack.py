"""``python -m loaders.pack``: pack a data set, check a packed one, or look after those in the cache."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from loaders.cache import cache_dir
from loaders.opening import open_data
from loaders.pack_cache import cached_pack_path, cached_sets, remove_cached
from loaders.pack_job import pack
from loaders.pack_records import PackError, PackOptions
from loaders.pack_sources import PackSource, is_tar, source_of, source_of_tars
from loaders.packed_manifest import BAD_FILES, Manifest, is_packed
from loaders.packed_verify import verify_packed
from loaders.sources import DataError

_EXAMPLES = """\
examples:
  python -m loaders.pack photos packed                        500 pixels at most, quality 90
  python -m loaders.pack photos packed --renditions 160,320   with smaller versions for low resolutions
  python -m loaders.pack photos packed --keep                 the original JPEG data, without loss
  python -m loaders.pack imagenette                           a known data set, into the cache
  python -m loaders.pack train-*.tar val-*.tar packed         tar files (WebDataset)
  python -m loaders.pack --verify packed                      compare every record with its checksum
  python -m loaders.pack --list-cache                         the packed sets in the cache, with their sizes

A call that was interrupted goes on where it was when it is repeated. SRC may not change between the two.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 when ``--verify`` finds damage, 2 for an error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = _parser()
    arguments = parser.parse_args(argv)
    cache = cache_dir() if arguments.cache_dir is None else arguments.cache_dir.expanduser().absolute()
    try:
        if arguments.verify:
            if len(arguments.paths) != 1:
                parser.error("--verify takes one packed folder")
            return _verify(arguments.paths[0])
        if arguments.list_cache or arguments.clean:
            if arguments.paths:
                parser.error("--list-cache and --clean take no paths, only --cache-dir")
            _list_cache(cache, arguments.clean)
            return 0
        if not arguments.paths:
            parser.error("name what to pack (SRC) and where to (DST); --help shows examples")
        _pack(arguments, cache)
    except (DataError, PackError) as error:
        print("error:", error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last whole shard", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loaders.pack",
        usage="%(prog)s SRC [SRC ...] [DST] [options]\n       %(prog)s --verify DST\n       "
        "%(prog)s --list-cache | --clean [--cache-dir DIR]",
        description="Pack a data set of images into Arrow shards that the region loader reads fastest, and that any "
        "reader of Arrow opens.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = PackOptions()
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="SRC [DST]",
        help="SRC is what --data takes in training (a folder, a known name, demo) or tar files of images; DST is the "
        "folder to make; without it, one in the cache",
    )
    images = parser.add_argument_group("what is stored")
    images.add_argument(
        "--max-side",
        type=int,
        default=default.max_side,
        metavar="PIXELS",
        help="longest side of an image; larger ones are shrunk (default: %(default)s)",
    )
    images.add_argument(
        "--quality", type=int, default=default.quality, metavar="1-100", help="of the JPEGs (default: %(default)s)"
    )
    images.add_argument(
        "--keep",
        action="store_true",
        help="keep the original JPEG data without loss, at their size; needs jpegtran (libjpeg-turbo-progs)",
    )
    images.add_argument(
        "--renditions",
        type=_sides,
        default=(),
        metavar="PIXELS,...",
        help="also store smaller versions with these longest sides, for phases at low resolution; a loader takes the "
        "smallest in which its crop still has the pixels wanted (default: none)",
    )
    images.add_argument(
        "--restart-blocks",
        type=int,
        default=0,
        metavar="N",
        help="blocks (MCUs) from one restart marker to the next (default: 2, with --keep 4)",
    )
    images.add_argument(
        "--shard-mb",
        type=int,
        default=default.shard_mb,
        metavar="MB",
        help="size of a shard, in million bytes (default: %(default)s)",
    )
    source = parser.add_argument_group("how SRC is read, as in training")
    source.add_argument("--csv", type=Path, metavar="FILE", help="a CSV that names the files and their labels")
    source.add_argument("--image-root", type=Path, metavar="DIR", help="the folder that the CSV's paths start from")
    for column in ("path", "label", "split"):
        source.add_argument(
            f"--{column}-column", default=column, metavar="NAME", help="column of the CSV (default: %(default)s)"
        )
    source.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="share of each class for validation where the data have no split (default: %(default)s)",
    )
    source.add_argument("--seed", type=int, default=0, metavar="N", help="of that split (default: %(default)s)")
    running = parser.add_argument_group("running")
    running.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    running.add_argument("--overwrite", action="store_true", help="replace the packed set that is in DST")
    running.add_argument("--cache-dir", type=Path, metavar="DIR", help="(default: $HEADRACE_CACHE, ~/.cache/headrace)")
    running.add_argument("--no-progress", action="store_true", help="show no progress bars")
    other = parser.add_argument_group("instead of packing").add_mutually_exclusive_group()
    other.add_argument("--verify", action="store_true", help="compare every record of DST with its checksum")
    other.add_argument("--list-cache", action="store_true", help="list the packed sets in the cache")
    other.add_argument("--clean", action="store_true", help="remove the packed sets in the cache")
    return parser


def _sides(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 160,320, got {text!r}") from error


def _pack(arguments: argparse.Namespace, cache: Path) -> None:
    options = PackOptions(
        arguments.max_side,
        arguments.quality,
        arguments.keep,
        arguments.restart_blocks,
        arguments.renditions,
        arguments.shard_mb,
    )
    if arguments.workers is not None and arguments.workers < 1:
        raise PackError(f"--workers must be at least 1, got {arguments.workers}")
    *sources, destination = arguments.paths if len(arguments.paths) > 1 else (*arguments.paths, None)
    source = _open_source(sources, arguments, cache)
    folder = Path(destination).expanduser() if destination else cached_pack_path(source, options, cache)
    manifest = pack(
        source,
        folder,
        options,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        show_progress=not arguments.no_progress,
    )
    print(summary(manifest, folder))


def _open_source(sources: Sequence[str], arguments: argparse.Namespace, cache: Path) -> PackSource:
    paths = [Path(source).expanduser() for source in sources]
    if all(is_tar(path) for path in paths):
        return source_of_tars(paths, arguments.val_fraction, arguments.seed, not arguments.no_progress)
    if len(paths) > 1:
        raise PackError(f"several sources have to be tar files; {next(p for p in paths if not is_tar(p))} is none")
    if is_packed(paths[0]):
        raise PackError(f"{paths[0]} is packed already; give what it was packed from")
    data = open_data(
        sources[0],
        csv=arguments.csv,
        image_root=arguments.image_root,
        path_column=arguments.path_column,
        label_column=arguments.label_column,
        split_column=arguments.split_column,
        val_fraction=arguments.val_fraction,
        seed=arguments.seed,
        cache=cache,
        show_progress=not arguments.no_progress,
    )
    return source_of(data)


def summary(manifest: Manifest, folder: Path) -> str:
    """Return what was packed, as a table."""
    lines = [f"{'':8}{'images':>12}{'left out':>10}{'MB in':>12}{'MB out':>12}{'kB per image':>14}"]
    for name, split in manifest.splits.items():
        lines.append(
            f"{name:8}{split.rows:12,}{len(split.tally.bad):10,}{split.tally.bytes_in / 1e6:12,.1f}"
            f"{split.bytes / 1e6:12,.1f}{split.bytes / split.rows / 1e3:14,.1f}"
        )
    changes: dict[str, int] = {}
    for split in manifest.splits.values():
        for change, count in split.tally.changes.items():
            changes[change] = changes.get(change, 0) + count
    lines += [f"{count:,} {change}" for change, count in sorted(changes.items(), key=lambda item: -item[1])]
    if any(split.tally.bad for split in manifest.splits.values()):
        lines.append(f"the images left out cannot be decoded: {folder / BAD_FILES}")
    return "\n".join([*lines, f"packed: {folder}"])


def _verify(folder: str) -> int:
    problems = 0
    for problem in verify_packed(folder):
        problems += 1
        print(problem)
    print(f"{folder}: {problems} problems" if problems else f"{folder}: every record is as it was packed")
    return 1 if problems else 0


def _list_cache(cache: Path, remove: bool) -> None:
    total = 0
    for cached in cached_sets(cache):
        state = "" if cached.whole else "  not packed to the end"
        if remove:
            state = "  removed" if remove_cached(cached) else "  is being packed; left alone"
        total += cached.bytes
        print(f"{cached.bytes / 1e6:12,.1f} MB  {cached.folder}{state}")
    print(f"{total / 1e6:12,.1f} MB  in all")


if __name__ == "__main__":
    sys.exit(main())
