import pytest

from pgnn_geo.errors import InputError
from pgnn_geo.registry import Registry


@pytest.fixture
def shapes() -> Registry[type]:
    registry = Registry[type]("shape")
    registry.register("square")(int)
    registry.register("circle")(float)
    return registry


def test_entries_come_back_by_name_and_in_order(shapes: Registry[type]) -> None:
    @shapes.register("arc")
    class Arc: ...

    assert shapes["arc"] is Arc
    assert Arc.__name__ == "Arc"  # the decorator gives back what it got
    assert list(shapes) == ["square", "circle", "arc"]
    assert len(shapes) == 3
    assert "arc" in shapes
    assert "Arc" not in shapes
    assert repr(shapes) == "Registry('shape', ['square', 'circle', 'arc'])"


@pytest.mark.parametrize("name", ["cube", "", None])
def test_an_unknown_name_lists_those_known(shapes: Registry[type], name: str) -> None:
    with pytest.raises(InputError) as error:
        shapes[name]
    assert str(error.value) == f"unknown shape {name!r}: want one of square, circle"


def test_a_name_has_one_entry(shapes: Registry[type]) -> None:
    shapes.register("square")(int)  # a module that is imported twice does no harm
    with pytest.raises(InputError, match="shape 'square' is there already"):
        shapes.register("square")(str)
    assert shapes["square"] is int
