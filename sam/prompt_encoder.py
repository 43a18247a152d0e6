"""SAM's prompt encoder at our sizes."""

from segment_anything.modeling import PromptEncoder

from .presets import EncoderSize


def build_prompt_encoder(backbone: EncoderSize, *, image_size: tuple[int, int]) -> PromptEncoder:
    """SAM's own `PromptEncoder` for images of (H, W) pixels; `encoder(None, None, None)` means no prompt."""
    height, width = image_size
    return PromptEncoder(
        embed_dim=backbone.out_chans,
        image_embedding_size=(height // backbone.patch_size, width // backbone.patch_size),
        input_image_size=image_size,
        mask_in_chans=backbone.decoder.mask_in_chans,
    )
