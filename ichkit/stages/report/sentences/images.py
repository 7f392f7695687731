"""Sentences about the way from a scan to the images that a network reads, from the settings of a store and a config."""

from collections.abc import Mapping
from typing import Any

from ichkit.core.config import ChannelsConfig
from ichkit.core.train_config import AugmentConfig, TrainConfig
from ichkit.imaging.parts import PARTS, WHOLE
from ichkit.imaging.steps import STEPS
from ichkit.imaging.windows import CHANNELS
from ichkit.stages.report.sentences.counts import join_words, say_count

_SEQUENCES = "sequences"
"""The row of `CHANNELS` for studies of several sequences, whose values are no Hounsfield units."""


def say_store(settings: Mapping[str, Any], num_repaired: int, num_slabs: int | None) -> list[str]:
    """How scans were stored.

    Args:
        settings: of the manifest of `prepared`.
        num_repaired: slices whose RescaleIntercept was repaired.
        num_slabs: images that were averaged with others into thicker slices; None if unknown.
    """
    said = ["Slices were ordered along the normal of their plane, from the feet to the head."]
    said += _say_sequences(settings["sequences"]) if settings.get("sequences") else _say_hounsfield(settings)
    if num_repaired:
        said.append(f"The intercept of {say_count(num_repaired, 'slices')} was wrong in a known way and was repaired.")
    if num_slabs:
        said.append(f"{say_count(num_slabs, 'images')} of thin series were averaged into slabs of about 5 mm.")
    size = settings.get("size")
    steps = settings.get("steps", ())
    said += [f'Step "{name}": {_lower(STEPS[name].description)}' for name in steps if name in STEPS]
    parts = settings.get("parts", {}).get("kind", WHOLE)
    if parts != WHOLE and parts in PARTS:
        said.append(f'Studies were cut into parts ("{parts}"): {_lower(PARTS[parts].description)}')
    how = "area average when they shrink, bilinear when they grow"
    said.append(
        f"Slices were stored at {size} x {size} pixels ({how})." if size else "Slices kept the size of their source."
    )
    return said


def _say_hounsfield(settings: Mapping[str, Any]) -> list[str]:
    hull = settings.get("hull_hu")
    clipped = f" and clipped to {hull[0]} to {hull[1]} HU" if hull else ""
    return [
        f"Stored values were converted to Hounsfield units (HU) with the slope and intercept of each file{clipped}."
    ]


def _say_sequences(sequences: Mapping[str, Any]) -> list[str]:
    """How several sequences of a study were brought to one grid."""
    names, steps = join_words(sequences["names"]), join_words(sequences["steps"])
    grid = " x ".join(map(str, sequences["shape"]))
    return [
        f"The sequences {names} of a study were brought to one grid of {grid} voxels; steps: {steps}. Values are 0 "
        "outside the brain and 1000 at its median in each sequence, up to 3000."
    ]


def say_images(channels: ChannelsConfig, train: TrainConfig) -> list[str]:
    """The input images of a network."""
    windows = [f"level {level:g}, width {width:g}" for level, width in channels.windows]
    said = [f"Channels: {_lower(CHANNELS[channels.kind].description)}"] if channels.kind in CHANNELS else []
    unit = "the values of the store, 1000 at the median of the brain" if channels.kind == _SEQUENCES else "HU"
    said.append(f"Windows in {unit}: {'; '.join(windows)}.")
    if channels.stretch == "image":
        said.append("Each image is scaled from its own lowest to its own highest value inside the window to 0 to 255.")
    else:
        said.append("Each window is scaled linearly from its low to its high end to 0 to 255.")
    side = train.image_size
    said.append(
        f"Slices that are not square were padded with air. Images were resized to {side} x {side} pixels, normalised "
        "with the mean and standard deviation that are stored with the network."
    )
    return said


def say_augmentation(train: TrainConfig, facts: Mapping[str, Any]) -> list[str]:
    """The random changes of training images, each with its range and probability; nothing at inference.

    Args:
        facts: as for `say_training`.
    """
    augment, adapted = train.augment, facts.get("adapted") or {}
    drawn = [
        (augment.crop_probability, f"crops of {_range(augment.crop_scale, 100)} % of the area"),
        (augment.horizontal_flip_probability, "horizontal flips"),
        (augment.vertical_flip_probability, "vertical flips"),
        (augment.transpose_probability, "transposition"),
        (augment.rotation_probability, _say_affine(augment)),
        (augment.distortion_probability if augment.distortion_limit else 0, "grid distortion"),
        (augment.noise_probability, f"Gaussian noise of {_range(augment.noise_hu)} HU"),
        (augment.intensity_probability, _say_intensity(augment)),
        (augment.dropout_probability, "rectangles filled with air"),
        (augment.every_second_probability, "every second slice alone"),
        (augment.reversed_probability, "slices in reverse order"),
    ]
    used = [f"{what} (p = {probability:g})" for probability, what in drawn if probability > 0]
    said = []
    if used:
        said.append(f"Training images were augmented, one draw per {augment.per}: {join_words(used)}.")
    else:
        said.append("Training images were not augmented.")
    for name, label, mix in (
        ("cutmix", "CutMix between blocks", train.cutmix),
        ("mixup", "Mixup", train.mixup),
    ):
        probability = adapted.get(f"{name}.probability", mix.probability)
        if probability:
            said.append(f"{label} in {probability:.0%} of the batches (alpha {mix.alpha:g}).")
    return said


def _say_affine(augment: AugmentConfig) -> str:
    parts = [f"rotations up to {augment.rotation_degrees:g} degrees"] if augment.rotation_degrees else []
    parts += [f"shifts up to {100 * augment.shift_fraction:g} % of the side"] if augment.shift_fraction else []
    parts += [f"scaling by {_range(augment.scale)}"] if augment.scale != (1.0, 1.0) else []
    return join_words(parts) or "no affine map"


def _say_intensity(augment: AugmentConfig) -> str:
    return f"shifts up to {augment.shift_hu} HU and contrast of {_range(augment.contrast)}"


def _range(values: tuple[float, float], factor: float = 1) -> str:
    low, high = (f"{factor * value:g}" for value in values)
    return low if low == high else f"{low} to {high}"


def _lower(sentence: str) -> str:
    """A sentence that goes on after a colon."""
    return sentence[:1].lower() + sentence[1:]
