"""``firebox average``; torch is imported when it is called."""

from pathlib import Path

import click

from ...runtime.commands.console import print_json, say
from ...runtime.commands.options import json_option


@click.command("average")
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint to write, a .safetensors file.")
@click.option("--data", help="Where the training images are now.  [default: as when CHECKPOINTS were trained]")
@json_option
def average_command(checkpoints: tuple[str, ...], out: Path, data: str | None, as_json: bool) -> None:
    """Write the mean of the weights of CHECKPOINTS (runs, checkpoints, snapshots) of one network.

    It costs one network to run, where an ensemble costs all of them. The statistics of batch norm are taken anew, on
    the images that CHECKPOINTS were trained on.

    \b
    Example:
      firebox average runs/digits/snapshots/*.safetensors --out build/average.safetensors
    """
    from ...runtime.errors import UsageError
    from .. import average_checkpoints, open_training_images
    from ..training.averaging import read_own

    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} is no .safetensors file; name it so that it can be read again")
    trained = read_own(checkpoints[0]).training
    images = open_training_images(trained, data)[0]
    average_checkpoints(checkpoints, out, images, quiet=as_json)
    if as_json:
        print_json({"out": str(out), "checkpoints": list(checkpoints), "images": len(images)})
        return
    measure = f"firebox evaluate {out} --data {data or trained.data}"
    say(f"the mean of {len(checkpoints)} networks is in {out}; measure it: {measure}")
