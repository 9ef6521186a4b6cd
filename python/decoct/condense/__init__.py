"""The loop that turns real data and an objective into a small synthetic set."""

from .condenser import Condenser, Phase, Record
from .pool import FreshNetworks, Pool
from .synthetic import Synthetic

__all__ = ["Condenser", "FreshNetworks", "Phase", "Pool", "Record", "Synthetic"]
