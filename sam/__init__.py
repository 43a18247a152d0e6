"""SAM's parts: image encoders, prompt encoders, mask decoders, sizes, and the reading of published checkpoints."""
