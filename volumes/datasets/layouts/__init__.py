"""How datasets lie on disk. A layout is one file here: whether a folder has it, and how its cases are listed."""

from . import amos, btcv, decathlon, endovis, folders, nnunet
from .listing import Layout

LAYOUTS: tuple[Layout, ...] = (
    decathlon.LAYOUT,
    nnunet.LAYOUT,
    amos.LAYOUT,
    btcv.LAYOUT,
    folders.VOLUMES,
    folders.PICTURES,
    endovis.LAYOUT,
)
