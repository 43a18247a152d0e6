"""SAM's parts: image encoder, prompt encoder, mask decoder, sizes, and the reading of published checkpoints."""
