"""From noise to images: `sampler(denoise, schedule, x_T) -> x_0`. One step a file, the loop in `base`."""

from .ancestral import Ancestral as Ancestral
from .base import Karras as Karras
from .base import Leading as Leading
from .base import Sampler as Sampler
from .base import Spacing as Spacing
from .base import Step as Step
from .base import Trailing as Trailing
from .base import UniformLogSNR as UniformLogSNR
from .ddim import DDIM as DDIM
from .dpm_solver import DPMSolver as DPMSolver
from .heun import Heun as Heun
