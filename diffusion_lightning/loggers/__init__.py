"""The run's records: a CSV file, whatever others it has, and Weights & Biases."""

from .metrics_file import MetricsFile as MetricsFile
from .weights_and_biases import WeightsAndBiases as WeightsAndBiases
