import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pgnn_geo.training.attention import AttentionModule


class Killed(Exception):
    pass


@pytest.fixture
def killed_at(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int, int], AbstractContextManager[None]]:
    """`with killed_at(epoch, batch)`: a training of stage 1 inside dies before that step."""

    @contextmanager
    def killed_at(epoch: int, batch: int) -> Iterator[None]:
        step = AttentionModule.training_step

        def dies(self: AttentionModule, items: dict[str, Any], batch_idx: int) -> Any:
            if (self.current_epoch, batch_idx) == (epoch, batch):
                raise Killed
            return step(self, items, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(AttentionModule, "training_step", dies)
            with pytest.raises(Killed):
                yield

    return killed_at


@pytest.fixture
def train_on_two_devices() -> Callable[[str, Path, Path], str]:
    """`train_on_two_devices(what, out, shapes_root)`: see `two_devices.py`; what it printed."""

    def run(what: str, out: Path, shapes_root: Path) -> str:
        script = Path(__file__).with_name("two_devices.py")
        command = [sys.executable, script, what, out, shapes_root]
        result = subprocess.run(command, capture_output=True, text=True, timeout=230)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
