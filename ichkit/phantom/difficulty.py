"""The difficulty of a phantom: bleeds, look-alikes, scanners and labels, as a table of parameters."""

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Difficulty:
    """A row of `DIFFICULTIES`; ranges are drawn from uniformly unless said otherwise, "share" is a probability.

    Attributes:
        name: key in the table.
        description: one sentence.
        source: where the parameters come from.
        size_factor: factor on the lengths of a bleed, log-uniform.
        stretch: greatest further factor on each half axis of a bleed, up or down, log-uniform; 1 for none.
        second_share: studies in which a subtype bleeds in two places.
        fresh_hu, old_hu: blood of some hours and of some days; older blood is nearly isodense.
        old_share: bleeds of older blood.
        lookalikes: mean number of look-alikes in a study, Poisson; see `lookalikes.LOOKALIKES`.
        turn_degrees: standard deviation of the head's rotation about the axes of its height and width.
        noise_hu, cupping_hu, petrous_hu, spot_rate: see `confounders.Scan`.
        offset_hu: standard deviation of the scanner's calibration error.
        kernel: reconstruction kernel from -1, soft, through 0, standard, to 1, sharp.
        restless_share: studies with motion; `motion_rate` of their slices have it.
        thick_share: studies with slices of 7.5 mm; thinner ones are as frequent at every difficulty.
        tilt_degrees: gantry tilt, in half of the studies.
        end_error: wrong labels in the two slices on either side of the end of a bleed, as a share of those slices.
        missed_share, confused_share: bleeds that the labels omit in a whole study, or call another subtype.
    """

    name: str
    description: str
    source: str
    size_factor: Range = (1.0, 1.0)
    stretch: float = 1.0
    second_share: float = 0.0
    fresh_hu: Range = (58.0, 85.0)
    old_hu: Range = (42.0, 50.0)
    old_share: float = 1 / 20
    lookalikes: float = 0.0
    turn_degrees: float = 5.0
    noise_hu: Range = (3.0, 6.0)
    offset_hu: float = 2.5
    cupping_hu: Range = (0.0, 6.0)
    petrous_hu: Range = (4.0, 16.0)
    spot_rate: Range = (0.05, 0.25)
    kernel: Range = (0.0, 0.0)
    restless_share: float = 0.15
    motion_rate: float = 0.25
    thick_share: float = 0.0
    tilt_degrees: Range = (5.0, 20.0)
    end_error: float = 0.0
    missed_share: float = 0.0
    confused_share: float = 0.0


DEMO = Difficulty(
    name="demo",
    description="Large bright bleeds and true labels: a small network learns it within minutes.",
    source="chosen here, so that the demo shows every command within five minutes",
)

DIFFICULTIES = {
    "demo": DEMO,
    "real": Difficulty(
        name="real",
        description="Subtle bleeds, common look-alikes, unlike scanners and some wrong labels, for measurements.",
        source="chosen here, aiming at what a plain network learns from as many real patients; see docs/method.md",
        size_factor=(0.5, 1.1),
        stretch=1.4,
        second_share=0.25,
        fresh_hu=(54.0, 82.0),
        old_hu=(40.0, 48.0),
        old_share=0.1,
        lookalikes=2.5,
        turn_degrees=7.0,
        noise_hu=(3.0, 7.0),
        offset_hu=3.0,
        cupping_hu=(0.0, 8.0),
        petrous_hu=(5.0, 22.0),
        spot_rate=(0.02, 0.12),
        kernel=(-1.0, 1.0),
        restless_share=0.2,
        motion_rate=0.3,
        thick_share=0.1,
        tilt_degrees=(5.0, 25.0),
        end_error=0.12,
        missed_share=0.03,
        confused_share=0.04,
    ),
    "calibrated": Difficulty(
        name="calibrated",
        description="The demo in scanners with little noise and few artefacts, for findings of a few Hounsfield units.",
        source="chosen here: noise of 3 to 5 HU and water within 1 HU, as quality control of scanners asks for",
        noise_hu=(3.0, 5.0),
        offset_hu=0.7,
        cupping_hu=(0.0, 2.0),
        petrous_hu=(4.0, 10.0),
        spot_rate=(0.0, 0.01),
        restless_share=0.05,
        motion_rate=0.1,
    ),
    "noise-free": Difficulty(
        name="noise-free",
        description="The demo as drawn: no noise, no artefacts, straight heads; for tests of method.",
        source="chosen here",
        turn_degrees=0.0,
        noise_hu=(0.0, 0.0),
        offset_hu=0.0,
        cupping_hu=(0.0, 0.0),
        petrous_hu=(0.0, 0.0),
        spot_rate=(0.0, 0.0),
        restless_share=0.0,
        tilt_degrees=(0.0, 0.0),
    ),
}
