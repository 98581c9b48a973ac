"""From noise to images: `sampler(denoise, schedule, x_T) -> x_0`. One step a file, the loop in `base`."""

from .ancestral import Ancestral as Ancestral
from .base import Sampler as Sampler
from .base import Step as Step
from .consistency import Consistency as Consistency
from .ddim import DDIM as DDIM
from .dpm_solver import DPMSolver as DPMSolver
from .heun import Heun as Heun
from .spacing import Karras as Karras
from .spacing import Leading as Leading
from .spacing import Respaced as Respaced
from .spacing import Spacing as Spacing
from .spacing import Trailing as Trailing
from .spacing import UniformLogSNR as UniformLogSNR
