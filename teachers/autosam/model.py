"""AutoSAM Adapter (Li et al. 2023, arXiv 2308.14936; its code is called AutoProSAM): SAM in 3-D, prompting itself."""

from typing import Any

from torch import Tensor, nn

from ...errors import UsageError
from ...sam.presets import Backbone, get_backbone
from ..volumetric.adapters import use_spatial_adapters
from ..volumetric.base import AUTHORS_KEYS as SHARED_KEYS
from ..volumetric.base import Teacher3D
from ..volumetric.decoder import AggregationDecoder
from ..volumetric.encoder import FEATURES, VolumeEncoder
from .prompt_generator import STAGES, PromptGenerator, poolings

# The authors' state-dict keys -> ours, for `sam.checkpoints.canonical_state`.
AUTHORS_KEYS = (
    *SHARED_KEYS,
    (r"^prompt_encoder\.inc\.conv1\.", "prompt_generator.stem.0."),
    (r"^prompt_encoder\.inc\.conv2\.conv\.conv\.", "prompt_generator.stem.1."),
    *(
        (rf"^prompt_encoder\.{way}{stage + 1}\.conv\.{theirs}\.conv\.conv\.", f"prompt_generator.{way}.{stage}.{ours}.")
        for stage in range(STAGES)
        for way, theirs, ours in (("down", 1, 1), ("down", 2, 4), ("up", 0, 0), ("up", 1, 3))
    ),
    (r"^prompt_encoder\.outc\.", "prompt_generator.out."),
)

ADAPTERS = ("paper", "code")
PROMPTED = {"first": 0, "last": FEATURES - 1, "none": None}
RESOLUTIONS = ("half", "full")


class AutoSAM(Teacher3D):
    """Fully automatic: a generator turns one of the encoder's four features into what prompts the decoder.

    `prompted` is that feature's index; the generator's output takes its place among the four. Without a generator
    nothing prompts the decoder (the paper's ablation).
    """

    title = "AutoSAM Adapter"
    trainable = (*Teacher3D.trainable, "prompt_generator.")

    def __init__(self, *, prompt_generator: PromptGenerator | None, prompted: int | None, **shared: Any) -> None:
        super().__init__(**shared)
        self.prompt_generator = prompt_generator
        self.prompted = prompted

    def forward(self, image: Tensor, prompts: None = None) -> Tensor:
        """image [B, C, D, H, W] -> logits [B, K, D, H, W]. UsageError for another shape, or for prompts."""
        if prompts is not None:
            raise UsageError("AutoSAM Adapter prompts itself and takes no prompts; leave them out")
        features = self.encode(image)
        if self.prompt_generator is not None and self.prompted is not None:
            features[self.prompted] = self.prompt_generator(features[self.prompted])
        *deeper, shallowest = reversed(features)  # the order of the decoder's heads
        return self.mask_decoder(self.mask_decoder.shallow(deeper), shallowest, image)


def build_autosam(
    *,
    backbone: str | Backbone,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    prompt_from: str = "last",
    adapter: str = "paper",
    decoder_resolution: str = "half",
    upsample: int | None = None,
    slices: int | None = None,
    cube: int = 8,
    positions: int = 64,
    generator_channels: int | None = None,
    decoder_channels: int | None = None,
    checkpointing: bool = False,
) -> AutoSAM:
    """AutoSAM Adapter for a patch (D, H, W) of 1 or 3 channels and `num_classes` classes, background included.

    The generator reads the `last` feature, as in the paper, or the `first`, as in the authors' code (`prompt_from`);
    with `none` there is no generator (the paper's Table 3). The mask decoder works at `half` of the patch's resolution
    where a token is 4 voxels, as in the authors' code, or at its `full` resolution, as in the paper
    (`decoder_resolution`).
    The adapters and the depth table start at zero as the `paper` has them, or at random and one as in the `code`,
    whose adapters also have two more ReLUs (`adapter`).

    The patch is up-sampled inside the model, `upsample` times on every axis (default: so that a token is 4 voxels
    wide), and cut into tokens of the backbone's square of pixels and `slices` slices (default: as many as pixels).
    The authors' preset is patch (128, 128, 128): 512^3 after up-sampling, 32^3 tokens of 4^3 voxels. Attention is
    within cubes of `cube`^3 tokens. `positions` is the side of SAM's position tables in tokens, 64 in its published
    files. `generator_channels` and `decoder_channels` are the widths of the generator (default: a sixteenth of the
    features') and of the mask decoder (default: half).

    UsageError: other channels or choices, or a patch that does not divide into tokens.
    """
    if in_channels not in (1, 3):
        raise UsageError(f"AutoSAM Adapter takes 1 channel (repeated to three) or 3, not {in_channels}")
    if prompt_from not in PROMPTED:
        raise UsageError(f"prompt_from is {prompt_from!r}: choose one of {', '.join(PROMPTED)}")
    if adapter not in ADAPTERS:
        raise UsageError(f"adapter is {adapter!r}: choose one of {', '.join(ADAPTERS)}")
    if decoder_resolution not in RESOLUTIONS:
        raise UsageError(f"decoder_resolution is {decoder_resolution!r}: choose one of {', '.join(RESOLUTIONS)}")
    size = get_backbone(backbone)
    image_encoder = VolumeEncoder(
        size,
        patch=patch,
        upsample=upsample,
        slices=slices,
        positions=positions,
        cube=cube,
        checkpointing=checkpointing,
    )
    if adapter == "paper":
        nn.init.zeros_(image_encoder.depth_embed)
        use_spatial_adapters(image_encoder, size.dim)
    prompted = PROMPTED[prompt_from]
    generator = None
    if prompted is not None:
        width = generator_channels or size.out_chans // 16
        generator = PromptGenerator(size.out_chans, width=width, pools=poolings(image_encoder.cells))
    return AutoSAM(
        image_encoder=image_encoder,
        prompt_generator=generator,
        mask_decoder=AggregationDecoder(
            channels=size.out_chans,
            width=decoder_channels or size.out_chans // 2,
            heads=FEATURES,
            in_channels=in_channels,
            classes=num_classes,
            full_size=decoder_resolution == "full",
        ),
        prompted=prompted,
        in_channels=in_channels,
        num_classes=num_classes,
        patch=patch,
    )
