"""The one training loop and what it needs: prepared cases, patches, losses, checkpoints and run folders."""
