"""The difference between a run of this pipeline and the baseline notebook on the same held-out images.

    python -m benchmarks.against_notebook NOTEBOOK_FOLDER WORK/COMPETITION/RUN

Reads the scores that benchmarks/baseline_notebook.py wrote (threshold 0.5, weights of its best epoch) and the
oof_scores.csv of a tuned run. Prints both mean scores on the images that both scored, and their difference with its
standard error and 95 % interval (bootstrap over groups).
"""

import argparse
from datetime import date
from pathlib import Path

import pandas as pd

from benchmarks.variant_tables import Counts, difference
from pipeline.core.files import read_json
from pipeline.masks.bootstrap import mean_counts, mean_score


def main() -> None:
    """Prints one row for our untuned predictions and one for the tuned ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    text = dict.fromkeys(("image_id", "group"), str)
    theirs = pd.read_csv(options.notebook / "scores.csv", dtype=text, keep_default_na=False)
    ours = pd.read_csv(options.run / "oof_scores.csv", dtype=text, keep_default_na=False)
    history = pd.read_csv(options.notebook / "history.csv")
    common = ours.merge(theirs.rename(columns={"score": "notebook"}), on="image_id")
    result = read_json(options.run / "postprocess.json")
    seconds = sum(read_json(file)["seconds"] for file in options.run.glob("fold_*/fold.json"))
    spent = history["seconds"].iloc[-1]
    print(
        f"{date.today()}, {result['metric']}, {len(common)} images both scored; notebook {len(history)} epochs in "
        f"{spent:.0f} s, {options.run.name} {seconds:.0f} s of training; nested {result['nested']:.4f}"
    )
    print("| ours | score | notebook | difference ± standard error [95 %] |\n|---|---|---|---|")
    for name, column in (("untuned", "untuned"), ("tuned", "score")):
        here, there = (
            Counts(
                mean_counts(common[one].to_numpy()),
                common["group"].to_numpy(),
                mean_score,
                common["image_id"].to_numpy(),
            )
            for one in (column, "notebook")
        )
        print(f"| {name} | {here.mean:.4f} | {there.mean:.4f} | {difference(there, here)} |")


if __name__ == "__main__":
    main()
