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
from .inference.drawing import ImageSettings as ImageSettings
from .inference.pipeline import ImageStep as ImageStep
from .inference.pipeline import UniXPipeline as UniXPipeline
from .preprocessing.images import load_image as load_image
from .sharding import make_mesh as make_mesh

__version__: str
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageError",
    "ImageSettings",
    "ImageStep",
    "ImageWarning",
    "PromptError",
    "UniXConfig",
    "UniXError",
    "UniXPipeline",
    "data",
    "evaluation",
    "load_image",
    "make_mesh",
    "training",
]
