"""Organs as SNOMED CT names them, by the names that configs and datasets give their classes."""

import re
from dataclasses import dataclass
from typing import Any

_ORGANS = {  # the words of a class name, to the keyword in pydicom's copy of DICOM's SNOMED CT subset
    "liver": "Liver",
    "spleen": "Spleen",
    "kidney": "Kidney",
    "gallbladder": "Gallbladder",
    "gall bladder": "Gallbladder",
    "aorta": "Aorta",
    "arota": "Aorta",  # so written in AMOS22's dataset.json
    "esophagus": "Esophagus",
    "oesophagus": "Esophagus",
    "stomach": "Stomach",
    "inferior vena cava": "InferiorVenaCava",
    "postcava": "InferiorVenaCava",
    "portal vein": "PortalVein",
    "splenic vein": "SplenicVein",
    "pancreas": "Pancreas",
    "adrenal gland": "AdrenalGland",
    "adrenal": "AdrenalGland",
    "duodenum": "Duodenum",
    "small bowel": "SmallIntestine",
    "small intestine": "SmallIntestine",
    "colon": "Colon",
    "rectum": "Rectum",
    "bladder": "Bladder",
    "urinary bladder": "Bladder",
    "prostate": "Prostate",
    "uterus": "Uterus",
    "hippocampus": "Hippocampus",
    "lung": "Lung",
    "heart": "Heart",
    "brain": "Brain",
    "spinal cord": "SpinalCord",
    "trachea": "Trachea",
}
_SIDES = {"left": "Left", "right": "Right", "anterior": "Anterior", "posterior": "Posterior"}
_ALONE = {"anterior": "hippocampus", "posterior": "hippocampus"}  # the classes of the Decathlon's hippocampus


@dataclass(frozen=True)
class Organ:
    """DICOM codes: the category, the type, and its side if it has one."""

    category: Any
    type: Any
    side: Any | None = None


def organ(name: str) -> Organ:
    """The codes of a class name such as "left kidney" or "adrenal_gland_right"; one that is not known is tissue."""
    from pydicom.sr.codedict import codes

    words = re.findall("[a-z]+", name.lower())
    side = next((word for word in words if word in _SIDES), "")
    keyword = _ORGANS.get(" ".join(word for word in words if word != side) or _ALONE.get(side, ""))
    if keyword is None:
        return Organ(codes.cid7150.Tissue, codes.cid7150.Tissue)
    modifier = getattr(codes.SCT, _SIDES[side]) if side else None
    return Organ(codes.cid7150.AnatomicalStructure, getattr(codes.SCT, keyword), modifier)
