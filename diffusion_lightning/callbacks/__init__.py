"""What happens beside the training: averaged weights, checkpoints, samples, metrics, a progress bar."""

from .agreement import Agreement as Agreement
from .bound_curve import BoundCurve as BoundCurve
from .checkpoint import Checkpoint as Checkpoint
from .ema import EMA as EMA
from .finite_loss import FiniteLoss as FiniteLoss
from .generative_metrics import GenerativeMetrics as GenerativeMetrics
from .loss_by_timestep import LossByTimestep as LossByTimestep
from .power_ema import PowerEMA as PowerEMA
from .preemption import Preemption as Preemption
from .progress import Progress as Progress
from .reconstructions import Reconstructions as Reconstructions
from .reverse_chain import ReverseChain as ReverseChain
from .sample_grid import SampleGrid as SampleGrid
from .sample_writer import SampleWriter as SampleWriter
from .sampler_table import SamplerTable as SamplerTable
from .stated_anew import StatedAnew as StatedAnew
from .throughput import Throughput as Throughput
