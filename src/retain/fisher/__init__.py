"""What importance is: Fisher information per example, at the trained point, in nats."""

from retain.fisher.estimate import Importance, measure, parameter_fisher, weight_fisher
from retain.fisher.penalty import quadratic

__all__ = ["Importance", "measure", "parameter_fisher", "quadratic", "weight_fisher"]
