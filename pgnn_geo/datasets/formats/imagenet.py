"""ImageNet's text lists: photos with the numbers of their classes, beside a list of names."""

from pathlib import Path

from pgnn_geo.datasets.formats.base import TagFile, TagFormat, Tags, collect
from pgnn_geo.datasets.tag_csv import read_text

#: The names of the classes, one a line; number 0 is the first.
SYNSETS = "synsets.txt"


def is_list(path: Path) -> bool:
    """Whether a file may be such a list: a text file beside names of classes."""
    named = path.suffix.lower() == ".txt" and path.name != SYNSETS
    return named and path.with_name(SYNSETS).is_file()


def _read(file: TagFile) -> Tags:
    names = [line.strip() for line in read_text(file.path.with_name(SYNSETS)).splitlines()]
    pairs, photos = [], []
    for number, line in enumerate(file.text.splitlines(), start=1):
        if not line.strip():
            continue
        # Names with spaces stand in quotes, but for their ending: "two words".jpg 0 3
        before, quote, rest = line.strip().partition('"')
        stem, _, rest = rest.partition('"') if quote and not before else ("", "", line.strip())
        ending, *labels = rest.split() if rest[:1].strip() else ["", *rest.split()]
        photos.append(stem + ending)
        if wrong := [own for own in labels if not own.isdecimal() or int(own) >= len(names)]:
            raise ValueError(
                f"line {number} has {wrong[0]!r}; want a photo and numbers below {len(names)}, "
                f"the lines of {SYNSETS}; names with spaces in quotes"
            )
        pairs += [(photos[-1], names[int(own)]) for own in labels]
    return collect(pairs, photos)


#: `ImageNet <https://docs.cvat.ai/docs/dataset_management/formats/format-imagenet/>`_, as CVAT
#: exports it without photos, and Datumaro as ``imagenet_txt``.
IMAGENET = TagFormat("imagenet", "ImageNet text list", lambda file: is_list(file.path), _read)
