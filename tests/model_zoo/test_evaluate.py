"""``firebox evaluate``: splits and threads."""

import json

import pytest


@pytest.mark.parametrize("threads", [-3, 0, 100_000])
def test_files_and_networks_accept_the_same_numbers_of_threads(firebox, trained, exported, threads):
    for model in (trained.out, exported / "model.int8.onnx"):
        outcome = firebox("evaluate", model, "--data", trained.out.parent / "images", "--threads", threads)
        assert (outcome.code, outcome.err) == (2, f"error: threads is {threads}; give 1 to 128\n")


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_split_has_images_at_any_val_fraction(firebox, trained, split):
    options = ("--data", trained.out.parent / "images", "--split", split, "--val-fraction", 0.99, "--json")
    outcome = firebox("evaluate", trained.out, *options)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["images"] == {"train": 3, "val": 27}[split]
