"""What is minimised: objectives over a step's context, discrepancies between measures first among them."""

from .attention import AttentionFeatures
from .barycenter import BarycenterMatch
from .characteristic import CharacteristicDistance, CharacteristicMatch
from .characteristic_mean import CharacteristicMean
from .context import Context, seeded
from .discrepancies import MMD, Sinkhorn
from .features import FeatureMap, Identity, NetFeatures
from .gradient_mean import GradientMean
from .gradients import GradientMatch, cross_entropy
from .groups import GroupObjective
from .match import Match
from .measure import Measure, counts_to_offsets
from .objective import Objective, WeightedSum, reduce_groups
from .private import PrivateSource
from .source import PublicSource, Source, StoredSource
from .statistic import FeatureMean, Statistic
from .statistic_match import StatisticMatch

__all__ = [
    "MMD",
    "AttentionFeatures",
    "BarycenterMatch",
    "CharacteristicDistance",
    "CharacteristicMatch",
    "CharacteristicMean",
    "Context",
    "FeatureMap",
    "FeatureMean",
    "GradientMatch",
    "GradientMean",
    "GroupObjective",
    "Identity",
    "Match",
    "Measure",
    "NetFeatures",
    "Objective",
    "PrivateSource",
    "PublicSource",
    "Sinkhorn",
    "Source",
    "Statistic",
    "StatisticMatch",
    "StoredSource",
    "WeightedSum",
    "counts_to_offsets",
    "cross_entropy",
    "reduce_groups",
    "seeded",
]
