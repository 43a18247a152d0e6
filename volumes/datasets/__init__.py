"""Datasets on disk: layouts, cases, splits, conversion, and the built-in phantom. Not shipped to the device."""
