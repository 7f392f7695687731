"""What a competitor writes in an afternoon: `python benchmarks/baseline.py WORK [--fold 0] [--backbone resnet18] ...`.

Random single slices in batches of 112, flip and affine, Adam with a cosine, the competition's loss. It reads a prepared
store of ichkit and uses nothing else of it; `benchmarks/default.py` runs it beside the shipped default.
"""

import argparse
from pathlib import Path

import blosc2
import cv2
import numpy as np
import pandas as pd
import timm
import torch
from torch.nn import functional

CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
WINDOWS = ((40, 80), (75, 215), (600, 2800))
WEIGHTS = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 2.0]) / 7
BATCH = 112


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="a work folder with prepared studies")
    parser.add_argument("--fold", type=int, default=0, help="held out")
    parser.add_argument("--backbone", default="resnet18", help="of timm, from random weights")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--images", type=int, default=210 * BATCH, help="images to train on, with repeats")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("baseline.parquet"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepared = args.work / "prepared"
    slices = pd.read_parquet(prepared / "slices.parquet")
    slices = slices[slices.split == "train"].reset_index(drop=True)
    train, held = slices[slices.fold != args.fold], slices[slices.fold == args.fold]
    network = fit(
        read_images(prepared, train, args.size),
        train[CLASSES].to_numpy(np.float32),
        backbone=args.backbone,
        num_images=args.images,
        rate=args.rate,
        seed=args.seed,
    )
    predicted = predict(network, read_images(prepared, held, args.size))
    table = pd.DataFrame(predicted, columns=[f"p_{name}" for name in CLASSES])
    table.insert(0, "slice_id", held.slice_id.to_numpy())
    table.to_parquet(args.out)


def read_images(prepared: Path, slices: pd.DataFrame, size: int) -> np.ndarray:
    """(N, size, size, 3) uint8 of the rows, three windows each."""
    images = np.empty((len(slices), size, size, 3), np.uint8)
    row = 0
    for path, group in slices.groupby("volume", sort=False):
        volume = blosc2.open(str(prepared / path), mode="r")[:]
        for index in group.slice_index:
            square = np.full((max(volume.shape[1:]),) * 2, -1000, np.int16)
            square[: volume.shape[1], : volume.shape[2]] = volume[index]
            small = cv2.resize(square.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
            for channel, (level, width) in enumerate(WINDOWS):
                images[row, :, :, channel] = np.clip((small - level + width / 2) / width, 0, 1) * 255
            row += 1
    return images


def fit(
    images: np.ndarray, labels: np.ndarray, *, backbone: str, num_images: int, rate: float, seed: int
) -> torch.nn.Module:
    """A network trained from random weights on batches of random slices."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    network = timm.create_model(backbone, num_classes=len(CLASSES)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    steps = max(num_images // BATCH, 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = np.concatenate([generator.permutation(len(images)) for _ in range(-(-steps * BATCH // len(images)))])
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        logits = network(augment(normalise(images[rows])))
        loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels[rows]), WEIGHTS * 7 / 6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def normalise(images: np.ndarray) -> torch.Tensor:
    """(n, H, W, 3) uint8 to (n, 3, H, W) float32."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.23


def augment(images: torch.Tensor) -> torch.Tensor:
    """Each image flipped half of the time, rotated by up to 15 degrees, scaled by 0.9 to 1.1 and shifted by 5 %."""
    n = len(images)
    angle, scale = (torch.rand(n) * 2 - 1) * np.pi / 12, 0.9 + 0.2 * torch.rand(n)
    flip = torch.sign(torch.rand(n) - 0.5)
    cosine, sine, shift = angle.cos() * scale, angle.sin() * scale, (torch.rand(n, 2) - 0.5) * 0.2
    first = torch.stack([cosine * flip, -sine, shift[:, 0]], 1)
    second = torch.stack([sine * flip, cosine, shift[:, 1]], 1)
    grid = functional.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.inference_mode()
def predict(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """(N, 6) probabilities."""
    return np.concatenate([network(normalise(images[i : i + 64])).sigmoid().numpy() for i in range(0, len(images), 64)])


if __name__ == "__main__":
    main()
