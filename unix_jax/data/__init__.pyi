from .config import (
    DataConfig as DataConfig,
)
from .loader import (
    BatchInfo as BatchInfo,
)
from .loader import (
    Loader as Loader,
)
from .mixture import (
    MixedRecords as MixedRecords,
)
from .mixture import (
    Part as Part,
)
from .mixture import (
    open_mixture as open_mixture,
)
from .mixture import (
    parse_mixture as parse_mixture,
)
from .moments import (
    Moments as Moments,
)
from .moments import (
    write_moments as write_moments,
)
from .records import (
    Record as Record,
)
from .records import (
    RecordSource as RecordSource,
)
from .records import (
    Subset as Subset,
)
from .records import (
    Turn as Turn,
)
from .records import (
    captions_of as captions_of,
)
from .records import (
    image_bytes as image_bytes,
)
from .records import (
    record_image as record_image,
)
from .records import (
    report_text as report_text,
)
from .sources import (
    open_source as open_source,
)
from .sources import (
    parse_spec as parse_spec,
)
from .sources.array_records import (
    ArrayRecordSource as ArrayRecordSource,
)
from .sources.array_records import (
    write_array_records as write_array_records,
)

__all__ = [
    "ArrayRecordSource",
    "BatchInfo",
    "DataConfig",
    "Loader",
    "MixedRecords",
    "Moments",
    "Part",
    "Record",
    "RecordSource",
    "Subset",
    "Turn",
    "captions_of",
    "image_bytes",
    "open_mixture",
    "open_source",
    "parse_mixture",
    "parse_spec",
    "record_image",
    "report_text",
    "write_array_records",
    "write_moments",
]
