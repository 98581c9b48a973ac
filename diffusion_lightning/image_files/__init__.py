"""Pictures on disk: the one reader, the one walk through a folder, archives."""

from .archive import IMAGES as IMAGES
from .archive import Archive as Archive
from .archive import Array as Array
from .archive import contents as contents
from .archive import load_array as load_array
from .archive import one_image as one_image
from .archive import readable as readable
from .base import FORMATS as FORMATS
from .base import PIXELS as PIXELS
from .base import SUFFIXES as SUFFIXES
from .base import Source as Source
from .base import decoded as decoded
from .base import head as head
from .base import own_limit as own_limit
from .base import regular as regular
from .folder import ORIGIN as ORIGIN
from .folder import Folder as Folder
from .folder import left_out as left_out
from .folder import no_pictures as no_pictures
from .folder import origin as origin
from .folder import state as state
from .folder import walk as walk
from .folder import write_grid as write_grid
from .folder import write_npz as write_npz
from .folder import write_png as write_png
