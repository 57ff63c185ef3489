from . import data as data
from . import evaluation as evaluation
from . import training as training
from .config import UniXConfig as UniXConfig
from .errors import (
    CheckpointError as CheckpointError,
)
from .errors import (
    ConfigError as ConfigError,
)
from .errors import (
    DataError as DataError,
)
from .errors import (
    ImageError as ImageError,
)
from .errors import (
    ImageWarning as ImageWarning,
)
from .errors import (
    PromptError as PromptError,
)
from .errors import (
    UniXError as UniXError,
)
from .inference.diffusion import DiffusionPipeline as DiffusionPipeline
from .inference.pipeline import UniXPipeline as UniXPipeline
from .inference.results import ImageResult as ImageResult
from .inference.results import ImageStep as ImageStep
from .inference.results import ReportResult as ReportResult
from .inference.results import ReportStep as ReportStep
from .inference.settings import DiffusionSettings as DiffusionSettings
from .inference.settings import ImageSettings as ImageSettings
from .inference.settings import ReportSettings as ReportSettings
from .preprocessing.images import load_image as load_image
from .sharding import make_mesh as make_mesh

__version__: str
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiffusionPipeline",
    "DiffusionSettings",
    "ImageError",
    "ImageResult",
    "ImageSettings",
    "ImageStep",
    "ImageWarning",
    "PromptError",
    "ReportResult",
    "ReportSettings",
    "ReportStep",
    "UniXConfig",
    "UniXError",
    "UniXPipeline",
    "data",
    "evaluation",
    "load_image",
    "make_mesh",
    "training",
]
