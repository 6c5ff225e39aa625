"""Raw files that a test of a reader may change as it likes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.core import driver
from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run, open_run
from pipeline.decode.readers.base import Item, Listing, MaskFault
from pipeline.decode.readers.registry import reader_of


class Raw:
    """Raw files of one competition, its YAML beside them; change `settings` and the files as a test likes."""

    def __init__(self, root: Path, name: str, settings: dict[str, Any]) -> None:
        self.root, self.folder, self.settings = root, root / "input" / name, settings
        self.yaml = root / f"{name}.yaml"
        self.folder.mkdir(parents=True)

    def competition(self) -> Competition:
        self.yaml.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        return load_competition(str(self.yaml))

    def listing(self) -> Listing:
        competition = self.competition()
        return reader_of(competition).list_items(competition, self.folder)

    def item(self, image_id: str) -> Item:
        return next(item for item in self.listing().items if item.image_id == image_id)

    def planes(self, image_id: str) -> np.ndarray:
        item = self.item(image_id)
        assert item.read_masks is not None
        return item.read_masks(item.read_image().shape[:2]).planes

    def faults(self) -> list[str]:
        return [str(fault) for fault in self.listing().faults]

    def mask_fault(self, image_id: str) -> MaskFault:
        with pytest.raises(MaskFault) as caught:
            self.planes(image_id)
        return caught.value

    def error(self) -> str:
        """The one line with which the listing fails."""
        with pytest.raises(PipelineError) as caught:
            self.listing()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def opened(self, item: Item) -> np.ndarray:
        """The image as a stage finds it by its row of images.parquet."""
        competition = self.competition()
        row = {"path": item.path, "image_id": item.image_id, "subset": item.subset}
        return reader_of(competition).opener(competition, self.folder)(row)

    def decoded(self, monkeypatch: pytest.MonkeyPatch, channels: int = 1) -> Run:
        monkeypatch.setenv("PIPELINE_ROOT", str(self.root))
        monkeypatch.setenv("PIPELINE_INPUT", str(self.root / "input"))
        self.competition()
        recipe = self.root / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({
            "competition": str(self.yaml), "image": {"size": [32, 32], "channels": channels},
            "model": {"weights": "none"},
        }))  # fmt: skip
        run = open_run(str(recipe))
        driver.run_stage(run, "decode")
        return run
