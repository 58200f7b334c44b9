"""The command ``average``; torch is imported when it runs."""

from pathlib import Path

import click

from ...runtime.commands.console import print_json, progress_unless, say
from ...runtime.commands.options import json_option
from ...runtime.errors import UsageError


@click.command("average")
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint to write, a .safetensors file.")
@click.option("--data", help="Training images, if they have moved.  [default: as when CHECKPOINTS were trained]")
@json_option
def average_command(checkpoints: tuple[str, ...], out: Path, data: str | None, as_json: bool) -> None:
    """Write the mean weights of CHECKPOINTS (runs, checkpoints, snapshots) of one network.

    The result runs at the cost of one network, an ensemble at the cost of all. Batch norm statistics are recomputed on
    the images that CHECKPOINTS were trained on.

    \b
    Example:
      firebox average runs/digits/snapshots/*.safetensors --out build/average.safetensors
    """
    from ..training import average_checkpoints, open_training_images
    from ..training.averaging import read_run_checkpoint

    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} does not end in .safetensors; rename it, so that firebox can read it again")
    config = read_run_checkpoint(checkpoints[0]).training
    images = open_training_images(config, data).training
    average_checkpoints(checkpoints, out, images, progress=progress_unless(as_json))
    if as_json:
        print_json({"out": str(out), "checkpoints": list(checkpoints), "images": len(images)})
        return
    evaluate = f"firebox evaluate {out} --data {data or config.data}"
    say(f"wrote the mean of {len(checkpoints)} networks to {out}; evaluate it with: {evaluate}")
