from .autoencoder import (
    AutoencoderObjective as AutoencoderObjective,
)
from .checkpoint_store import (
    CheckpointStore as CheckpointStore,
)
from .checkpoint_store import (
    Restored as Restored,
)
from .config import (
    CheckpointConfig as CheckpointConfig,
)
from .config import (
    DistributedConfig as DistributedConfig,
)
from .config import (
    EvalsConfig as EvalsConfig,
)
from .config import (
    ImageEvalConfig as ImageEvalConfig,
)
from .config import (
    LoggingConfig as LoggingConfig,
)
from .config import (
    ModelConfig as ModelConfig,
)
from .config import (
    PreviewConfig as PreviewConfig,
)
from .config import (
    ReportEvalConfig as ReportEvalConfig,
)
from .config import (
    TrainConfig as TrainConfig,
)
from .config import (
    ValidationConfig as ValidationConfig,
)
from .config import (
    load_config as load_config,
)
from .config import (
    parse_arguments as parse_arguments,
)
from .distributed import (
    agree as agree,
)
from .distributed import (
    collect as collect,
)
from .distributed import (
    initialise as initialise,
)
from .distributed import (
    is_primary as is_primary,
)
from .distributed import (
    row_share as row_share,
)
from .lora import (
    LoraConfig as LoraConfig,
)
from .lora import (
    init_lora as init_lora,
)
from .lora import (
    merge_lora as merge_lora,
)
from .losses import (
    LossConfig as LossConfig,
)
from .losses import (
    unix_loss as unix_loss,
)
from .optimizer import (
    OptimizerConfig as OptimizerConfig,
)
from .repa import (
    RepaConfig as RepaConfig,
)

__all__ = [
    "AutoencoderObjective",
    "CheckpointConfig",
    "CheckpointStore",
    "DistributedConfig",
    "EvalsConfig",
    "ImageEvalConfig",
    "LoggingConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PreviewConfig",
    "RepaConfig",
    "ReportEvalConfig",
    "Restored",
    "TrainConfig",
    "ValidationConfig",
    "agree",
    "collect",
    "init_lora",
    "initialise",
    "is_primary",
    "load_config",
    "merge_lora",
    "parse_arguments",
    "row_share",
    "unix_loss",
]
