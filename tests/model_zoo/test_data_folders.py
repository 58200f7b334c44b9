"""``firebox train`` in folders with unexpected contents."""

import json
import os

QUICK = ("--epochs", 1, "--batch-size", 4, "--threads", 1)


def test_runs_among_the_images_are_no_classes_and_other_files_are_kept(firebox, images):
    own = (".bashrc.old", ".thesis.part")
    for run in ("one", "two"):
        out = images / run
        out.mkdir()
        for name in own:
            (out / name).write_text("kept")
        (out / ".config.old").mkdir()
        (out / ".log.csv.0123abcd.part").write_text("left by a process that was killed")
        outcome = firebox("train", "--data", images, "--out", out, *QUICK)
        assert outcome.code == 0, outcome.err
        assert (out / "curves.png").exists()
        assert json.loads((out / "config.json").read_text())["classes"] == ["class0", "class1"]
        assert {path.name for path in out.glob(".*")} == {*own, ".config.old"}
        assert {(out / name).read_text() for name in own} == {"kept"}


def test_each_class_has_training_images_whatever_the_validation_fraction(firebox, images, tmp_path):
    for path in sorted((images / "class1").iterdir())[2:]:
        path.unlink()
    outcome = firebox("train", "--data", images, "--out", tmp_path / "run", "--val-fraction", 0.99, *QUICK)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (found["train_images"], found["val_images"]) == (2, 8)


def test_unusable_data_is_reported_in_one_line(firebox, images, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "class0").symlink_to(images / "class0")
    (tmp_path / "val" / "class1").symlink_to(images / "class1")
    lacking = firebox("train", "--data", tmp_path, "--out", tmp_path / "run", *QUICK)
    message = f"error: class 'class1' in {tmp_path} has no image to train on; add some or remove it\n"
    assert (lacking.code, lacking.err) == (1, message)
    os.mkfifo(images / "class0" / "pipe.png")
    stuck = firebox("train", "--data", images, "--out", tmp_path / "run", *QUICK)
    assert stuck.code == 1
    assert stuck.err.endswith(f"error: {images}/class0/pipe.png is not a regular file; remove it\n")
    assert not (tmp_path / "run").exists()
