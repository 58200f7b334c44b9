"""``firebox average``; torch is imported when it is called."""

from pathlib import Path

import click

from ..runtime.console import json_option, print_json, say


@click.command("average")
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint to write, a .safetensors file.")
@click.option("--data", help="Pictures for the statistics of batch norm.  [default: what CHECKPOINTS were trained on]")
@json_option
def average_command(checkpoints: tuple[str, ...], out: Path, data: str | None, as_json: bool) -> None:
    """Write the mean of the weights of CHECKPOINTS (runs, checkpoints, snapshots) of one network.

    It costs one network to run, where an ensemble costs all of them. The statistics of batch norm are taken anew.

    \b
    Example:
      firebox average runs/digits/snapshots/*.safetensors --out build/average.safetensors
    """
    from ..runtime.datasets import open_images, split_images
    from ..runtime.errors import UsageError
    from . import TrainingConfig, average_checkpoints, load_network

    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} is no .safetensors file; name it so that it can be read again")
    network = load_network(checkpoints[0])
    trained = TrainingConfig.from_json(network.training or {})
    images = split_images(open_images(data or trained.data), trained.val_fraction, trained.seed)[0]
    average_checkpoints(checkpoints, out, images, quiet=as_json)
    if as_json:
        print_json({"out": str(out), "checkpoints": list(checkpoints), "pictures": len(images)})
        return
    say(
        f"the mean of {len(checkpoints)} networks is in {out}; measure it: firebox evaluate {out} --data {trained.data}"
    )
