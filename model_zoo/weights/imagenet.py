"""The 1000 classes of ILSVRC 2012."""

from pathlib import Path


def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and WordNet ids of the 1000 classes in index order; only the ids are unique."""
    lines = Path(__file__).with_name("imagenet.txt").read_text(encoding="utf-8").splitlines()
    ids, names = zip(*(line.split("\t") for line in lines), strict=True)
    return names, ids
