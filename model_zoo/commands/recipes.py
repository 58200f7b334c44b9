"""The command ``recipes``."""

import click

from ...runtime.commands.console import print_json, say, table
from ...runtime.commands.options import json_option
from ..recipes import list_recipes, load_recipe, recipe_text


@click.command("recipes")
@click.argument("name", required=False)
@json_option
def recipes_command(name: str | None, as_json: bool) -> None:
    """List the recipes for firebox train --recipe, or print the recipe NAME.

    A recipe is a small TOML file with keys of a run's config.json; --recipe also accepts the path of your own file.

    \b
    Example:
      firebox recipes
      firebox recipes cifar10 > mine.toml
    """
    if as_json:
        names = [name] if name else list_recipes()
        print_json({"recipes": {each: load_recipe(each) for each in names}})
    elif name:
        say(recipe_text(name).rstrip())
    else:
        rows = [(each, recipe_text(each).partition("\n")[0].removeprefix("# ")) for each in list_recipes()]
        table("Recipes", ("name", "training"), rows)
