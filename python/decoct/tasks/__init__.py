"""Adapters: what data, which learner, which risk."""

from .base import Learner, Model, Task
from .classification import ClassificationTask, compare
from .data import Dataset, load
from .membership import Attack, membership_inference
from .results import Results, Row
from .selection import SELECTIONS, herding, kmeans, nearest_to_centroids, random_rows
from .training import PROTOCOLS, TrainingProtocol

__all__ = [
    "PROTOCOLS",
    "SELECTIONS",
    "Attack",
    "ClassificationTask",
    "Dataset",
    "Learner",
    "Model",
    "Results",
    "Row",
    "Task",
    "TrainingProtocol",
    "compare",
    "herding",
    "kmeans",
    "load",
    "membership_inference",
    "nearest_to_centroids",
    "random_rows",
]
