"""What is minimised: objectives over a step's context, discrepancies between measures first among them."""

from .attention import AttentionFeatures
from .barycenter import BarycenterMatch
from .characteristic import CharacteristicDistance, CharacteristicMatch
from .context import Context, seeded
from .discrepancies import MMD, Sinkhorn
from .features import FeatureMap, Identity, NetFeatures
from .gradients import GradientMatch, cross_entropy
from .groups import GroupObjective
from .match import Match
from .measure import Measure, counts_to_offsets
from .objective import Objective, WeightedSum, reduce_groups
from .source import PublicSource, Source, StoredSource
from .statistic import FeatureMean, Statistic

__all__ = [
    "MMD",
    "AttentionFeatures",
    "BarycenterMatch",
    "CharacteristicDistance",
    "CharacteristicMatch",
    "Context",
    "FeatureMap",
    "FeatureMean",
    "GradientMatch",
    "GroupObjective",
    "Identity",
    "Match",
    "Measure",
    "NetFeatures",
    "Objective",
    "PublicSource",
    "Sinkhorn",
    "Source",
    "Statistic",
    "StoredSource",
    "WeightedSum",
    "counts_to_offsets",
    "cross_entropy",
    "reduce_groups",
    "seeded",
]
