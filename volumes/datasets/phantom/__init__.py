"""The built-in phantom: generated abdominal CTs with six labelled organs."""
