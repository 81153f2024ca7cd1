"""Every knob of DVG, its meaning and its released value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.geometry import NUM_STAGES, ModelGeometry, Shifts

SpatialDemand = Literal[
    "fft",
    "fft_exact",
    "fft_per_frame",
    "fft_energy",
    "sobel",
    "blur3",
    "blur5",
    "blur7",
    "multiscale",
    "spectrum_multiscale",
    "highpass",
]
TemporalDemand = Literal[
    "global_lk",
    "windowed_lk",
    "phase_correlation",
    "difference",
    "squared_difference",
    "multiscale_cosine",
    "change",
    "spectrum",
    "dense_lk",
]
ResizeMode = Literal[
    "temporal_interp_spatial_restore", "temporal_interp_spatial_area", "temporal_interp_spatial_interp", "trilinear"
]
SmoothingPadding = Literal["replicate", "zeros"]
DemandSpace = Literal["latent", "pixels"]
NoiseHash = Literal["arithmetic", "logical"]
ImageCondition = Literal["index", "encode"]


NUM_FITTED = 10


class DvgConfig(BaseModel):
    """Every knob of DVG. The defaults are the authors' released behaviour, except where a field says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    transition_rates: tuple[float, ...] = Field((0.28, 0.50, 0.72), min_length=1, max_length=NUM_STAGES - 1)
    """Shares of the steps after which the grid changes; strictly increasing, in (0, 1)."""
    stage1_spatial: float = Field(0.5, gt=0, le=1)
    """Height and width of the sketch, as a share of the full grid's."""
    stage1_temporal: float = Field(0.8, gt=0, le=1)
    """Frames of the sketch: this share of budget times the full grid's."""
    spatial_rates: tuple[float, ...] = Field((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), min_length=1)
    """Choices for the spatial rate s2 of stage 2. The paper writes a grid of 0.05."""
    temporal_rate_step: float | None = Field(None, gt=0, le=1)
    """None: any number of frames from the sketch's to all. 0.05: the paper's grid of rates."""
    tolerance: float = Field(0.02, gt=0, lt=1)
    """An action is feasible when its density is this near to the budget."""
    cost_tolerance: float = Field(0.04, gt=0, lt=1)
    """Under a budget in speedup or seconds: an action is feasible when its predicted cost is this near, relatively."""
    one_sided: bool = False
    """True: never above the budget."""
    sharpness: float = Field(2.6, ge=0, le=100)
    """Softmax factor from demands to weights; 0 always weighs space and time alike."""
    balance: float = Field(0.5, ge=0, le=1)
    """Share of the spatial term in the score."""
    matching: Literal["minmax", "stage_mean", "demand_match", "linear", "fitted"] = "minmax"
    """How an action's split is scored: rescaled over the list; the paper's equation 9; two more of the release; a rule learned
    from the best actions of many videos."""
    fitted: tuple[float, ...] | None = None
    """What ``fitted`` scores with: mean and deviation of the spatial demand, then weights of E, T, E^2 and T^2 (the split as
    ``minmax`` sees it), then how much each grows with a deviation of the demand. wan-mini's belong to ``sobel`` on pixels."""
    demand_match_prior: float = Field(0.08, ge=0)
    """Weight of the Beta(5, 2) prior on s2 under ``demand_match`` (the release uses 0.15 for HunyuanVideo)."""
    shifts: Shifts | None = None
    """Timestep shift of each stage; None: the model's."""
    demand_space: DemandSpace = "latent"
    """Where both demands are measured: on the sketch's clean latent, or on the brightness of its decoded frames (an
    ablation of the paper, which costs a small decode)."""
    spatial_demand: SpatialDemand = "fft"
    """How detail is measured; ``fft_per_frame`` is the paper's form, the others are described beside their code."""
    temporal_demand: TemporalDemand = "global_lk"
    """How motion is measured; ``windowed_lk`` is the closest reading of the paper."""
    resize: ResizeMode = "temporal_interp_spatial_restore"
    """Passage to the next grid; ``temporal_interp_spatial_interp`` is the paper's equation 12, ``trilinear`` its ablation."""
    smoothing: float = Field(0.3, ge=0, le=1)
    """Share of a 3 x 3 box blur mixed in on entering stage 2."""
    smoothing_padding: SmoothingPadding = "replicate"
    """``zeros`` is the release, which darkens the border."""
    noise_seed: int | None = None
    """None: derived from the item's seed. The release uses 12345 for every video."""
    noise_hash: NoiseHash = "arithmetic"
    """Right shift of the noise hash; ``arithmetic`` gives the release's values."""
    renoise: Literal["coordinate", "random"] = "coordinate"
    """``random`` draws fresh noise at every transition (an ablation of the paper)."""
    noise_field: Literal["hash", "stock"] = "hash"
    """The fixed field on the final grid whose cells every stage draws its noise from: the release's hash of the coordinate,
    or the stock pipeline's draw for the full grid, from which a full run of the same seed starts."""
    initial_noise: Literal["randn", "coordinate"] = "randn"
    """The noise that stage 1 starts from: a draw for its own grid, or the field that every transition takes its noise from
    (on the cells that stage 1 has before the plan is known)."""
    extrapolation: float = Field(1.0, gt=0, le=1)
    """Share of the way to sigma = 0 that the clean estimate at a transition goes."""
    meanflow_clean: Literal["released", "zero"] = "released"
    """Second timestep that a MeanFlow model is given where the clean estimate is taken: the next step's, or 0, for which the
    estimate is exact. Other models have none."""
    stale_timesteps: bool = False
    """True: the network is told stage 1's timesteps to the end, and clean estimates use the nearest level to them, as the
    release does for HunyuanVideo-1.5. Otherwise always those of the stage's own schedule."""
    image_condition: ImageCondition = "encode"
    """How an image condition follows the grid: cells of the full-size latent (the release), or the image resized and encoded
    again, which measures better on wan-mini."""
    fixed_spatial: float = Field(0.7, gt=0, le=1)
    """Height and width of every stage but the last under the planner ``fixed``, as a share of the full grid's."""
    fixed_temporal: float = Field(0.55, gt=0, le=1)
    """Frames of every stage but the last under the planner ``fixed``, likewise."""

    @classmethod
    def for_model(cls, model: ModelGeometry, overrides: Mapping[str, Any] | None = None) -> Self:
        """The released values, the model's own where they differ, then ``overrides``. Raises ValidationError."""
        return cls.model_validate({**dict(model.dvg_defaults), **(overrides or {})})

    @model_validator(mode="after")
    def _check_fitted(self) -> Self:
        if self.fitted is not None and (len(self.fitted) != NUM_FITTED or self.fitted[1] <= 0):
            raise ValueError(f"fitted has {len(self.fitted)} numbers: it must have {NUM_FITTED}, the second above 0")
        if self.matching == "fitted" and self.fitted is None:
            raise ValueError(
                "matching is fitted, but no rule was fitted for this model: give `fitted`, or choose another matching"
            )
        return self

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        for name in ("transition_rates", "spatial_rates"):
            rates = getattr(self, name)
            if list(rates) != sorted(set(rates)) or not all(0 < rate <= 1 for rate in rates):
                raise ValueError(f"{name} is {rates}: it must be strictly increasing and within (0, 1]")
        if self.transition_rates[-1] >= 1:
            raise ValueError(f"transition_rates is {self.transition_rates}: the last must be below 1")
        return self
