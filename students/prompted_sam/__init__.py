"""Small students of a published promptable model."""
