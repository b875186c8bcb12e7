from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from pgnn_geo.app.cli_parser import option_names, run_command, run_function
from pgnn_geo.errors import InputError
from pgnn_geo.options import Arguments, Changes, Fields, constructor_arguments


@dataclass(frozen=True)
class Oven:
    """The oven.

    Args:
        degrees (float): How hot, see :class:`~kitchen.Oven`.
        fan (str, optional): Which fan.
    """

    degrees: float = 180.0
    fan: str | None = "slow"


@dataclass(frozen=True)
class Meal:
    """A meal.

    Args:
        guests (int): How many come.
        oven (Oven): What it is baked in.
        wine (str): What they drink.
    """

    guests: int
    oven: Oven = field(default_factory=Oven)
    wine: str = "red"


COOKED: list[tuple[dict[str, Any], dict[str, Any], str]] = []


def cook(
    meal: Annotated[dict[str, Any], Fields(Meal, skip=("wine",))],
    bake: Annotated[dict[str, Any], Changes(Oven, "What a dish has in place of its own")],
    dish: str = "tart",
) -> None:
    """Cook.

    Args:
        meal: The meal.
        bake: How it is baked.
        dish: What is cooked.
    """
    COOKED.append((meal, bake, dish))


def cooked(*words: str, recipe: Path | None = None) -> tuple[dict[str, Any], dict[str, Any], str]:
    recipes = {} if recipe is None else {"cook": recipe}
    run_command("kitchen", [cook], recipes, ["cook", *words])
    return COOKED.pop()


def test_fields_have_the_values_of_their_class() -> None:
    meal, bake, dish = cooked("--guests=4")
    assert Meal(**meal) == Meal(4)
    assert (bake, dish) == ({}, "tart")
    meal, _, dish = cooked("--guests=4", "--oven.degrees=90", "--dish=pie")
    assert Meal(**meal) == Meal(4, Oven(90.0, "slow"))
    assert dish == "pie"


def test_only_what_is_given_changes_anything() -> None:
    own = Oven(220.0, "fast")
    assert replace(own, **cooked("--guests=1")[1]) == own
    # That it is the default value of the class makes no difference.
    assert replace(own, **cooked("--guests=1", "--bake.degrees=180")[1]) == Oven(180.0, "fast")
    assert replace(own, **cooked("--guests=1", "--bake.fan=null")[1]) == Oven(220.0, None)


def test_a_recipe_gives_as_well_and_the_command_line_wins(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("guests: 7\nbake: {degrees: 100, fan: fast}\n")
    assert cooked(recipe=recipe)[1] == {"degrees": 100.0, "fan": "fast"}
    meal, bake, _ = cooked("--guests=8", "--bake.fan=slow", recipe=recipe)
    assert (meal["guests"], bake) == (8, {"degrees": 100.0, "fan": "slow"})
    extra = tmp_path / "extra.yaml"
    extra.write_text("bake: {degrees: 50}\n")
    assert cooked(f"--config={extra}", recipe=recipe)[1] == {"degrees": 50.0, "fan": "fast"}


@pytest.mark.parametrize(
    "word, said",
    [
        ("--wine=white", "wine"),
        ("--bake.degrees=null", "bake.degrees"),
        ("--bake.steam=1", "bake.steam"),
        ("--oven.degrees=hot", "oven.degrees"),
    ],
)
def test_what_is_no_option_or_no_value_of_one_is_named(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cooked("--guests=4", word)
    assert said in capsys.readouterr().err
    assert not COOKED


def test_help_has_the_texts_of_the_class(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cooked("--help")
    said = capsys.readouterr().out
    assert "How many come. (required, type: int)" in said
    assert "How hot, see kitchen.Oven. (type: float, default: 180.0)" in said
    assert "How hot, see kitchen.Oven. (type: float)\n" in said  # the dish knows, not the class
    assert "What a dish has in place of its own:" in said


def test_names_of_options() -> None:
    assert option_names(cook) == ["guests", "oven", "bake", "dish"]
    assert Fields(Meal, only=("wine", "oven")).names == ["wine", "oven"]


def test_a_program_of_one_command() -> None:
    run_function(cook, ["--guests", "2", "--bake.degrees", "70"])
    meal, bake, dish = COOKED.pop()
    assert (Meal(**meal), bake, dish) == (Meal(2), {"degrees": 70.0}, "tart")


class Gas:
    """A stove that burns gas.

    Args:
        rings (int): How many pots it takes, see :class:`~kitchen.Pot`. (default: :obj:`4`)
        flame (str): How it burns. (default: :obj:`"blue"`)
        pressure (float, optional): That of the gas. (default: :obj:`None`)
    """

    def __init__(
        self,
        rings: int = 4,
        flame: Literal["blue", "yellow"] = "blue",
        pressure: float | None = None,
    ) -> None:
        self.config = constructor_arguments(locals())


class Wood(Gas):
    """A stove that burns wood.

    Args:
        rings (int): Places that are hot.
        logs (sequence of str): What is burnt. (default: :obj:`("oak",)`)
    """

    def __init__(self, rings: int = 1, logs: Sequence[str] = ("oak",)) -> None:
        config = constructor_arguments(locals())
        super().__init__(rings)
        self.config = config


STOVE = Arguments(Gas, Wood, skip=("pressure",), rings=2)


@dataclass(frozen=True)
class Kitchen:
    """A kitchen.

    Args:
        size (float): Of its floor.
        stove (dict): The arguments of its stove.
    """

    size: float = 9.0
    stove: Annotated[dict[str, Any], STOVE] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stove", STOVE.complete(self.stove))


BUILT: list[tuple[Kitchen, dict[str, Any]]] = []


def furnish(
    kitchen: Annotated[dict[str, Any], Fields(Kitchen)],
    other: Annotated[dict[str, Any], STOVE],
) -> None:
    """Furnish.

    Args:
        kitchen: The kitchen.
        other: Another stove.
    """
    BUILT.append((Kitchen(**kitchen), other))


def test_arguments_of_constructors_are_options(tmp_path: Path) -> None:
    assert Kitchen().stove == {"rings": 2, "flame": "blue", "logs": ("oak",)}
    usual = {"rings": 2, "flame": "blue", "logs": ["oak"]}  # as YAML has it
    run_function(furnish, [])
    assert BUILT.pop() == (Kitchen(9.0, usual), usual)
    file = tmp_path / "kitchen.yaml"
    file.write_text("stove: {flame: yellow, logs: [ash, elm]}\n")
    run_function(furnish, [f"--config={file}", "--stove.rings=3", "--other.flame=yellow"])
    kitchen, other = BUILT.pop()
    assert kitchen.stove == {"rings": 3, "flame": "yellow", "logs": ["ash", "elm"]}
    assert other == usual | {"flame": "yellow"}


def test_help_has_the_texts_of_the_constructor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        run_function(furnish, ["--help"])
    said = capsys.readouterr().out
    assert "Arguments of Gas or Wood:" in said
    assert said.count("How many pots it takes, see kitchen.Pot. (type: int, default: 2)") == 2
    assert said.count("What is burnt. (type: Sequence[str], default: ") == 2
    assert "pressure" not in said and "Places that are hot" not in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pressure": 1.0}, "pressure: no arguments of Gas or Wood.*some of rings, flame, logs"),
        ({"rings": "4"}, "rings='4'.*want int"),
        ({"rings": True}, "rings=True.*want int"),
        ({"flame": "green"}, "flame='green'.*'blue', 'yellow'"),
        ({"logs": "oak"}, "logs='oak'.*Sequence"),
        ({"logs": [1]}, "logs=.1.*Sequence"),
    ],
)
def test_arguments_that_the_constructor_does_not_take(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Kitchen(stove=given)


def test_numbers_and_nothing_are_values_where_they_are_meant() -> None:
    gas = Arguments(Gas)
    for pressure in (None, 1, 0.5):
        assert gas.complete({"pressure": pressure})["pressure"] == pressure
    with pytest.raises(InputError, match="pressure='high'"):
        gas.complete({"pressure": "high"})
    with pytest.raises(InputError, match="rings=None"):
        gas.complete({"rings": None})


def test_a_constructor_knows_what_it_was_called_with() -> None:
    assert Gas(3, pressure=2.0).config == {"rings": 3, "flame": "blue", "pressure": 2.0}
    assert Wood(logs=["ash"]).config == {"rings": 1, "logs": ["ash"]}
