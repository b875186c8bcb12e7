"""Tables of tags as spreadsheets, pandas and people write them."""

import csv
import io
import re
from pathlib import Path

import pytest

from pgnn_geo.datasets import TaggedFolder
from pgnn_geo.datasets.tag_csv import read_tag_csv
from pgnn_geo.errors import InputError, InputNote

WANTED = {"a.jpg": ("cat", "dog"), "b.jpg": ("cat",), "c.jpg": ()}


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


PLAIN = {
    "spaces": "image,labels\na.jpg,cat dog\nb.jpg,cat\nc.jpg,\n",
    "Windows": "image,labels\r\na.jpg,cat dog\r\nb.jpg,cat\r\nc.jpg,\r\n",
    "Excel in Europe": "image;labels\na.jpg;cat dog\nb.jpg;cat\nc.jpg;\n",
    "Excel's own line": "sep=;\nimage;labels\na.jpg;cat dog\nb.jpg;cat\nc.jpg;\n",
    "tabs": "image\tlabels\na.jpg\tcat dog\nb.jpg\tcat\nc.jpg\t\n",
    "an index": ",image,labels\n0,a.jpg,cat dog\n1,b.jpg,cat\n2,c.jpg,\n",
    "empty cells and rows": "image,labels,,\na.jpg,cat dog,,\n,,,\n\nb.jpg,cat,,\nc.jpg,,,\n",
    "case": "Image , LABELS\na.jpg , cat dog \nb.jpg,cat\nc.jpg,\n",
    "quotes": '"image","labels"\n"a.jpg", "cat dog"\n"b.jpg","cat"\n"c.jpg",""\n',
}
SAID = {
    "comma": 'image,labels\na.jpg,"cat,dog"\nb.jpg,cat\nc.jpg,\n',
    "comma and space": 'image,labels\na.jpg, "cat, dog"\nb.jpg,cat\nc.jpg,""\n',
    "semicolon": "image,labels\na.jpg,cat;dog\nb.jpg,cat\nc.jpg,\n",
    "bar": "image,labels\na.jpg,cat | dog\nb.jpg,cat\nc.jpg,\n",
    "line breaks": 'image,labels\na.jpg,"cat\ndog"\nb.jpg,cat\nc.jpg,\n',
    "semicolon in semicolons": 'image;labels\na.jpg;"cat;dog"\nb.jpg;cat\nc.jpg;\n',
    "Python": "image,labels\na.jpg,\"['cat', 'dog']\"\nb.jpg,['cat']\nc.jpg,[]\n",
    "tuples": "image,labels\na.jpg,\"('cat', 'dog')\"\nb.jpg,\"('cat',)\"\nc.jpg,()\n",
    "numpy": "image,labels\na.jpg,['cat' 'dog']\nb.jpg,['cat']\nc.jpg,[]\n",
    "JSON": 'image,labels\na.jpg,"[""cat"", ""dog""]"\nb.jpg,"[""cat""]"\nc.jpg,[]\n',
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_dialects(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, name: str, encoding: str
) -> None:
    assert read_tag_csv(written(tmp_path / "t.csv", PLAIN[name], encoding)) == WANTED
    assert not recwarn.list


@pytest.mark.parametrize("name", SAID)
def test_other_ways_to_separate_labels_are_said(tmp_path: Path, name: str) -> None:
    with pytest.warns(InputNote, match=r"t\.csv': labels are read as .* 2 classes: cat, dog"):
        assert read_tag_csv(written(tmp_path / "t.csv", SAID[name])) == WANTED


OTHER = {
    "Kaggle": "filename,label\na.jpg,cat dog\nb.jpg,cat\nc.jpg,\n",
    "a photo a row": "id,tags\na.jpg,cat dog\nb.jpg,cat\nc.jpg,\n",
    "a box a row": (
        "filename,width,class,xmin\na.jpg,9,cat,1\na.jpg,9,dog,2\na.jpg,9,cat,3\n"
        "b.jpg,9,cat,1\nc.jpg,9,,\n"
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_columns_of_other_names_are_said(tmp_path: Path, name: str) -> None:
    with pytest.warns(InputNote) as notes:
        assert read_tag_csv(written(tmp_path / "t.csv", OTHER[name])) == WANTED
    said = [str(note.message) for note in notes]
    assert "photos are read from the column" in said[0]
    assert len(said) == 1 or "several rows have the labels of all: a.jpg (1 in all)" in said[1]


@pytest.mark.parametrize("name", ["cat/dog", "cat+dog", "cat&dog", "cat-dog", "cat_dog"])
def test_a_name_that_may_be_several_is_said(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "t.csv", f"image,labels\na,{name}\nb,cat\nc,dog\n")
    with pytest.warns(InputNote, match=f"'{re.escape(name)}' beside 'cat' and 'dog'"):
        assert read_tag_csv(path)["a"] == (name,)


def test_an_empty_cell_that_a_program_wrote_is_said(tmp_path: Path) -> None:
    with pytest.warns(InputNote, match=r"'nan' \(1 in all\) is read as a class"):
        read_tag_csv(written(tmp_path / "t.csv", "image,labels\na,cat\nb,nan\n"))


def test_what_the_csv_module_writes(tmp_path: Path) -> None:
    rows = [("image", "labels"), ("a.jpg", "traffic light, dog"), ("b, c.jpg", 'the "cat"')]
    for dialect in csv.list_dialects():
        text = io.StringIO()
        csv.writer(text, dialect=dialect).writerows(rows)
        with pytest.warns(InputNote, match="separated by ','"):
            found = read_tag_csv(written(tmp_path / "t.csv", text.getvalue()))
        assert found == {"a.jpg": ("traffic light", "dog"), "b, c.jpg": ('the "cat"',)}


@pytest.mark.filterwarnings("ignore::pgnn_geo.errors.InputNote")
def test_spaces_in_names_where_they_do_not_separate(tmp_path: Path) -> None:
    text = "image,labels\na,traffic  light;dog\nb,traffic light\nc,light;\n"
    found = read_tag_csv(written(tmp_path / "t.csv", text))
    assert found == {"a": ("traffic light", "dog"), "b": ("traffic light",), "c": ("light",)}


@pytest.mark.filterwarnings("ignore::pgnn_geo.errors.InputNote")
@pytest.mark.parametrize(
    "text, words",
    [
        (
            'image,labels\na,"cat,dog"\nb,cat;dog\n',
            r"separated by ',' \(line 2\) and ';' \(line 3\)",
        ),
        ('image,labels\na,"cat,dog"\nb,cat dog\n', r"line 3: 'cat dog' may be one class or sev"),
        ('image,labels\na,"cat\n', r"line \d+: unexpected end of data"),
        ('image,labels\na,"cat" dog\n', r"line 2: "),
        ("image,labels\na,cat,dog\nb\n", r"line 2, line 3 \(2 in all\)"),
        ("file,what\na,cat\n", r"columns image,labels.*got 'file,what'"),
        ("file,label,tags\na,cat,dog\n", r"columns image,labels.*got 'file,label,tags'"),
        ("", r"columns image,labels.*got ''"),
        ("image,labels\na,cat\nb,cat & dog\n", r"'&'.* stands where a label should: line 3 \("),
    ],
)
def test_one_clear_error(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"t\.csv'.*{words}"):
        read_tag_csv(written(tmp_path / "t.csv", text))


def test_encodings_that_are_not_unicode(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "image,labels\ngröße.jpg,cat\n", "cp1252")
    with pytest.raises(InputError, match=r"t\.csv' cannot be read as CSV.*CSV UTF-8"):
        read_tag_csv(path)


@pytest.mark.parametrize("one, other", [("Cat", "cat"), ("traffic light", "trafficlight")])
def test_names_that_look_alike_are_said(tmp_path: Path, one: str, other: str) -> None:
    path = written(tmp_path / "t.csv", f"image,labels\na,{one};\nb,{other};\n")
    with pytest.warns(InputNote) as notes:
        read_tag_csv(path)
    assert f"different classes: {one!r} and {other!r}" in str(notes[-1].message)


def test_one_unicode_form_of_a_name(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "image,labels\na,bär\nb,ba\u0308r\n")
    assert read_tag_csv(path) == {"a": ("bär",), "b": ("bär",)}


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "__background__"])
def test_a_tag_background_says_nothing(tmp_path: Path, write_photo: object, name: str) -> None:
    path = written(tmp_path / "t.csv", f"image,labels\na,{name} cat\nb,cat\nc,{name}\n")
    with pytest.warns(InputNote, match=f"the tag '{name}' is left out"):
        found = read_tag_csv(path)
    assert found == {"a": ("cat",), "b": ("cat",), "c": ()}
    for photo in "abc":
        write_photo(tmp_path / "photos" / f"{photo}.jpg")  # type: ignore[operator]
    with pytest.warns(InputNote):
        dataset = TaggedFolder(tmp_path / "photos", path)
    assert dataset.classes == ("cat",) and dataset.check() == ["image c has no tags"]
    with pytest.warns(InputNote), pytest.raises(InputError, match="cannot be a class: label 0"):
        TaggedFolder(tmp_path / "photos", path, classes=f"{name},cat")
