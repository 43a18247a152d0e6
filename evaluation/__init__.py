"""Scores, pictures and reports: how good a mask is, by numbers and by eye. numpy, scipy and Pillow; no torch."""
