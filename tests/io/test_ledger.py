import pytest

from pgnn_geo.errors import InputError
from pgnn_geo.io.ledger import SupervisionLedger


def test_round_trip_and_lines():
    ledger = SupervisionLedger(tags="csv", weights="W", tuned_on_truth=("background",))
    assert SupervisionLedger.from_dict(ledger.to_dict()) == ledger
    assert ledger.to_list() == ["tags: csv", "weights: W", "tuned on truth: background"]


def test_merging_forgets_nothing():
    merged = SupervisionLedger(tags="csv", boxes="coco").merged(
        SupervisionLedger(tags="xml", masks="val", tuned_on_truth=("background",))
    )
    assert merged.tags == "csv + xml"
    assert (merged.boxes, merged.masks) == ("coco", "val")
    assert merged.tuned_on_truth == ("background",)


def test_unknown_fields_are_refused():
    with pytest.raises(InputError, match="colour"):
        SupervisionLedger.from_dict({"colour": "blue"})
