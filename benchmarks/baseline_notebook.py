"""A plain TGS Salt notebook, as written from segmentation-models-pytorch's published binary example.

    python -m benchmarks.baseline_notebook input/tgs-salt folds/tgs-salt.csv FOLDER --seconds 1800

It uses nothing of this pipeline except the CSV of the folds. Images are read from disk in each epoch, resized to
128×128 and augmented by albumentations in two persistent workers. A ResNet34-UNet is trained from scratch in fp32 with
BCE + Dice and Adam, on a cosine schedule over as many epochs as fit in the time. The weights of the epoch with the best
validation score are kept, and the threshold is 0.5.

Writes into FOLDER best.pt, probabilities.npy (N, 101, 101) float32 of the held-out images with probabilities.csv
(image_id, fold), scores.csv (image_id, score) and history.csv (epoch, seconds, score).
"""

import argparse
import time
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def rle_to_mask(rle: str, height: int, width: int) -> np.ndarray:
    mask = np.zeros(height * width, dtype=np.uint8)
    numbers = np.array(rle.split(), dtype=int)
    for start, length in zip(numbers[::2] - 1, numbers[1::2], strict=True):
        mask[start : start + length] = 1
    return mask.reshape((height, width), order="F")


class SegmentationDataset(Dataset):
    def __init__(self, folder: Path, table: pd.DataFrame, size: tuple[int, int], augment: bool):
        self.folder, self.table = folder, table
        steps = [A.Resize(*size)]
        if augment:
            steps += [A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.5)]
        self.transform = A.Compose(steps)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        row = self.table.iloc[index]
        image = cv2.imread(str(self.folder / f"{row.image_id}.png"), cv2.IMREAD_COLOR_RGB)
        assert image is not None
        mask = rle_to_mask(row.rle_mask, *image.shape[:2])
        sample = self.transform(image=image, mask=mask)
        pixels = ((sample["image"] / 255 - MEAN) / STD).astype(np.float32)
        return pixels.transpose(2, 0, 1), sample["mask"][None].astype(np.float32)


def make_loader(dataset: Dataset, batch_size: int, train: bool) -> DataLoader:
    return DataLoader(dataset, batch_size, shuffle=train, drop_last=train, num_workers=2, persistent_workers=True)


class Notebook:
    """The model, its loss and its optimiser."""

    def __init__(self, channels: int = 3):
        self.model = smp.Unet("resnet34", encoder_weights=None, in_channels=channels, classes=1)
        self.bce, self.dice = torch.nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def step(self, images: torch.Tensor, masks: torch.Tensor) -> float:
        logits = self.model(images)
        loss = self.bce(logits, masks) + self.dice(logits, masks)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def predict(self, loader: DataLoader, height: int, width: int) -> np.ndarray:
        self.model.eval()
        batches = [self.model(images).sigmoid()[:, 0].numpy() for images, _ in loader]
        self.model.train()
        return np.stack([cv2.resize(one, (width, height)) for batch in batches for one in batch])


def iou_precision(prediction: np.ndarray, truth: np.ndarray) -> float:
    if not prediction.any() and not truth.any():
        return 1.0
    iou = (prediction & truth).sum() / (prediction | truth).sum()
    return float((iou > np.arange(0.5, 1.0, 0.05)).mean())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folds", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = _options()
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    folds = pd.read_csv(options.folds, dtype={"image_id": str})
    masks = pd.read_csv(options.data / "train.csv", keep_default_na=False, dtype=str)
    table = folds.merge(masks, left_on="image_id", right_on="id")
    held_out = table[table.fold == options.fold]
    table = table[(table.fold != options.fold) & (table.use == "train")]
    truths = np.stack([rle_to_mask(rle, 101, 101) for rle in held_out.rle_mask]).astype(bool)
    folder = options.data / "train" / "images"
    train_loader = make_loader(SegmentationDataset(folder, table, (128, 128), True), 16, True)
    valid_loader = make_loader(SegmentationDataset(folder, held_out, (128, 128), False), 16, False)
    notebook = Notebook()

    # as many epochs as fit in the time, estimated from the first steps, including validation
    timed: list[float] = []
    for images, target in train_loader:
        before = time.perf_counter()
        notebook.step(images, target)
        timed.append(time.perf_counter() - before)
        if len(timed) == 25:
            break
    per_epoch = float(np.median(timed)) * (len(train_loader) + 0.4 * len(valid_loader))
    epochs = max(1, int((options.seconds - (time.perf_counter() - started)) / per_epoch))
    print(
        f"{len(table)} training images, {len(held_out)} held out, {epochs} epochs of about {per_epoch:.0f} s",
        flush=True,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(notebook.optimizer, epochs * len(train_loader), eta_min=1e-5)

    best, history = -1.0, []
    for epoch in range(epochs):
        for images, target in train_loader:
            notebook.step(images, target)
            schedule.step()
            if time.perf_counter() - started > options.seconds:
                break
        probabilities = notebook.predict(valid_loader, 101, 101)
        scores = [iou_precision(p > 0.5, truth) for p, truth in zip(probabilities, truths, strict=True)]
        score, seconds = float(np.mean(scores)), time.perf_counter() - started
        history.append({"epoch": epoch + 1, "seconds": round(seconds, 1), "score": round(score, 4)})
        print(history[-1], flush=True)
        if score > best:
            best = score
            torch.save(notebook.model.state_dict(), options.out / "best.pt")
            np.save(options.out / "probabilities.npy", probabilities)
            held_out[["image_id", "fold"]].to_csv(options.out / "probabilities.csv", index=False)
            pd.DataFrame({"image_id": held_out.image_id, "score": scores}).to_csv(
                options.out / "scores.csv", index=False
            )
        pd.DataFrame(history).to_csv(options.out / "history.csv", index=False)
        if seconds > options.seconds:
            break
    print(f"best validation score {best:.4f}, {time.perf_counter() - started:.0f} s; results in {options.out}")


if __name__ == "__main__":
    main()
