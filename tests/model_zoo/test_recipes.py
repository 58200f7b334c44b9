import json

import pytest

from firebox.model_zoo import TrainingConfig, find_model, model_config
from firebox.model_zoo.recipes import list_recipes, load_recipe
from firebox.model_zoo.weights import read_checkpoint


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_a_training(name):
    config = TrainingConfig(**load_recipe(name))
    find_model(config.model)
    model_config(config.model, **config.network)


def test_the_imagenet_recipe_matches_the_paper():
    config = TrainingConfig(**load_recipe("squeezenet-imagenet"))
    assert (config.model, config.iterations, config.batch_size) == ("squeezenet1_0", 170_000, 512)
    assert (config.learning_rate, config.schedule, config.power) == (0.04, "polynomial", 1)
    assert (config.momentum, config.weight_decay) == (0.9, 2e-4)


def test_the_command_lists_and_prints_recipes(firebox):
    listed = firebox("recipes")
    assert listed.code == 0
    assert all(name in listed.out for name in list_recipes())
    shown = firebox("recipes", "squeezenet-imagenet")
    assert 'model = "squeezenet1_0"' in shown.out
    found = json.loads(firebox("recipes", "--json").out)["recipes"]
    assert sorted(found) == list_recipes()
    assert found["squeezenet-imagenet"]["iterations"] == 170_000


def test_the_command_line_overrides_a_recipe(firebox, images, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'model = "squeezenet_micro"\nepochs = 7\nbatch_size = 4\nmomentum = 0.5\n[network]\npools = [3, 5]\nfreq = 3\n'
    )
    out = tmp_path / "run"
    options = ("--recipe", recipe, "--data", images, "--epochs", 1, "--set", "bypass=none", "--out", out)
    assert firebox("train", *options).code == 0
    checkpoint = read_checkpoint(out / "checkpoint.safetensors")
    training = checkpoint.training
    assert (training.epochs, training.batch_size, training.momentum) == (1, 4, 0.5)
    assert (checkpoint.config.bypass, checkpoint.config.freq, checkpoint.config.pools) == ("none", 3, (3, 5))
    assert training.network == {"pools": (3, 5), "freq": 3, "bypass": "none"}


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("epoch = 3", 2, "unknown key 'epoch'; did you mean epochs?"),
        ('epochs = "three"', 2, "epochs 'three' is invalid; use an integer"),
        ("learning_rate = nan", 2, "learning_rate nan is invalid"),
        (f"learning_rate = 1{'0' * 400}", 2, "is not between 0 and 1e+30"),
        ("seed = 1979-05-27", 2, "is invalid; use an integer"),
        ("teachers = 3", 2, "teachers 3 is invalid; use strings"),
        ("[network]\nbypass = 1", 2, "bypass 1 is invalid"),
        ("[network]\nbypas = 'none'", 2, "squeezenet_micro has no 'bypas'; did you mean bypass?"),
        ("[network]\nnum_classes = 3", 2, "the network's num_classes is determined by the images"),
        ("epochs = ", 1, "is not TOML"),
        (f"seed = {'9' * 5000}", 1, "is not TOML"),
        (f"seed = {'[' * 5000}", 1, "is not TOML"),
        (b"\xff\xfe\x00", 1, "is not a text file"),
    ],
)
def test_a_broken_recipe_is_reported_in_one_line(firebox, tmp_path, content, code, message):
    path, out = tmp_path / "broken.toml", tmp_path / "run"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = firebox("train", "--recipe", path, "--out", out)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not out.exists()


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbfepochs = 3\n")
    assert load_recipe(tmp_path / "marked.toml") == {"epochs": 3}


@pytest.mark.parametrize(
    ("name", "message"),
    [("squeezenet-imagnet", "did you mean squeezenet-imagenet"), ("nowhere.toml", "no such file: nowhere.toml")],
)
def test_an_unknown_recipe_is_reported_in_one_line(firebox, name, message):
    for command in (("train", "--recipe", name), ("recipes", name)):
        outcome = firebox(*command)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert message in outcome.err
