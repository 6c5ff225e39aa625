"""Predicts with exported models; needs onnxruntime and numpy alone, and reads and writes .npy files.

python predict.py                     compares the models with check.npz
python predict.py PIXELS.npy OUT.npy  pixels (images, channels, rows, columns) as model.json describes them
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

FOLDER, BATCH = Path(__file__).parent, 8


def predict(pixels: np.ndarray) -> list[np.ndarray]:
    """Returns probabilities (images, classes, rows, columns) and, with a presence head, (images, classes)."""
    models = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))["models"]
    sessions = [onnxruntime.InferenceSession(FOLDER / model["file"]) for model in models]
    starts = range(0, len(pixels), BATCH)
    outputs = [[session.run(None, {"pixels": pixels[at : at + BATCH]}) for at in starts] for session in sessions]
    of_models = [[np.concatenate(batches) for batches in zip(*output, strict=True)] for output in outputs]
    return [np.mean(values, axis=0) for values in zip(*of_models, strict=True)]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        np.save(sys.argv[2], predict(np.load(sys.argv[1]))[0])
    else:
        check = np.load(FOLDER / "check.npz")
        print(f"largest difference: {np.abs(predict(check['pixels'])[0] - check['probability']).max():.1e}")
