"""Where the callbacks of one run meet: its folder, pictures of samples, samples scored against real images."""

from ...distributed.ranks import check_same as check_same
from ...distributed.ranks import everywhere as everywhere
from .folder import checkpoints_folder as checkpoints_folder
from .folder import save_picture as save_picture
from .folder import save_table as save_table
from .picture import SamplePicture as SamplePicture
from .scoring import Round as Round
from .scoring import Scoring as Scoring
from .scoring import now as now
