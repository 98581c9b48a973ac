"""The base of the sources: the order and the batches, splits, labels, captions, pictures decoded once, downloads."""

from .arrange import Splits as Splits
from .arrange import arrange as arrange
from .arrange import check_labels as check_labels
from .arrange import own_splits as own_splits
from .arrange import whole_numbers as whole_numbers
from .caption_files import check_kind as check_kind
from .caption_files import read_captions as read_captions
from .captions import check_captions as check_captions
from .captions import one_of as one_of
from .decode import FORMAT as FORMAT
from .decode import OnError as OnError
from .decode import Pictures as Pictures
from .decode import decode as decode
from .decode import fingerprint as fingerprint
from .download import ByTorchvision as ByTorchvision
from .download import downloaded as downloaded
from .held_out import held_out as held_out
from .images import Bytes as Bytes
from .images import Images as Images
from .images import Reference as Reference
from .order import Loader as Loader
from .order import Order as Order
from .picture import ResizeCrop as ResizeCrop
from .picture import size_of_first as size_of_first
from .small_digits import small_digits as small_digits
from .store import cached as cached
