"""Scores of the sample competition with and without images whose labels contradict each other, for several seeds.

    python -m benchmarks.cleaned_labels FOLDER [--seeds 0 1 2] [--policies drop_empty keep]

For each seed, runs the recipe `sample` in FOLDER/seed_<n> under each policy of `clean.contradictions`. Finished runs
are not run again. The truth.csv of the 24 test subjects has contradictions too, as a real test set would.
"""

import argparse
import os
from datetime import date
from pathlib import Path

import numpy as np
import yaml

from benchmarks.leaking_folds import TEST_IMAGES, listed
from benchmarks.sample_seeds import open_seed, run_seed, test_scores
from pipeline.core.config import raw_layouts, recipe_files
from pipeline.core.files import read_json
from pipeline.core.run import open_run


def write_variant(root: Path, policy: str) -> Path:
    """Returns the path of the recipe `sample` on the sample competition under another policy."""
    data = yaml.safe_load((raw_layouts.FOLDER / "sample.yaml").read_text())
    data |= {"input": "sample", "clean": {"contradictions": {"policy": policy}}}
    (root / f"sample-{policy}.yaml").write_text(yaml.safe_dump(data))
    settings = yaml.safe_load((recipe_files.FOLDER / "sample.yaml").read_text())
    path = root / f"recipe-{policy}.yaml"
    path.write_text(yaml.safe_dump(settings | {"competition": f"sample-{policy}.yaml"}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--policies", nargs="+", default=["drop_empty", "keep"])
    options = parser.parse_args()
    rows: list[str] = []
    scores: dict[str, list[float]] = {policy: [] for policy in options.policies}
    for seed in options.seeds:
        root = open_seed(options.folder, seed)
        for policy in options.policies:
            name = "sample" if policy == "drop_empty" else str(write_variant(root, policy))
            run_seed(root, seed, test=TEST_IMAGES, recipe=name)
            run = open_run(name)
            result, (test, _) = read_json(run.postprocess), test_scores(run)
            scores[policy].append(float(test.mean()))
            rows.append(f"| {seed} | {policy} | {result['score']:.4f} | {test.mean():.4f} |")
    print(f"{date.today()}, {os.cpu_count()} CPU cores")
    print("| seed | policy | out-of-fold | held-out subjects |")
    print("|---|---|---|---|")
    print("\n".join(rows))
    first, *others = options.policies
    for other in others:
        difference = np.subtract(scores[first], scores[other])
        print(f"{first} minus {other} on the held-out subjects: {difference.mean():+.4f} ({listed(difference)})")


if __name__ == "__main__":
    main()
