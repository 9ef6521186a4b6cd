"""The loop that turns real data and an objective into a small synthetic set."""

from .condenser import Condenser, Phase, Record
from .pool import FreshNetworks, Pool, PretrainedNetwork, TrainedNetworks
from .synthetic import MultiFormation, Synthetic

__all__ = [
    "Condenser",
    "FreshNetworks",
    "MultiFormation",
    "Phase",
    "Pool",
    "PretrainedNetwork",
    "Record",
    "Synthetic",
    "TrainedNetworks",
]
