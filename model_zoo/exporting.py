"""A network of the zoo, with all that is known of it, through the exporter."""

from pathlib import Path

from ..export import Export, ExportConfig, export
from ..runtime.images import LabelledImages
from .network import Network


def export_network(
    network: Network,
    out: str | Path,
    images: LabelledImages,
    config: ExportConfig | None = None,
    *,
    quiet: bool = False,
) -> Export:
    """Write a network's files into ``out``, calibrated and compared on ``images``; raises as ``export`` does.

    One that was trained for int8 keeps the ranges and the weights it was trained with.
    """
    return export(
        network.module,
        out,
        preprocessing=network.preprocessing,
        images=images,
        classes=network.classes,
        class_ids=network.class_ids,
        name=network.name,
        checkpoint_sha256=network.sha256,
        config=config,
        ranges=network.ranges,
        quiet=quiet,
    )
