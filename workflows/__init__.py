"""Workflows: what one verb does across the rooms, as functions that Python users may call, too."""
