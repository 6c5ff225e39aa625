"""The stages in the order in which data flows: the one table that the command line and pipeline/stages/ share."""

STAGE_HELP = {
    "decode": "Read and check every raw image and mask.",
    "clean": "List what is wrong with the images and their masks.",
    "split": "Split the training images into folds, and audit them.",
    "train": "Train one model a fold; an interrupted fold goes on.",
    "predict": "Predict the held-out and the test images.",
    "tune": "Choose thresholds and areas on the held-out predictions.",
    "encode": "Write and check the submission.",
    "evaluate": "Score a test set whose truth is known.",
    "report": "Write one page to look at.",
}
"""Each stage, pipeline/stages/<stage>.py, and its line in `--help`."""
STAGES = tuple(STAGE_HELP)
