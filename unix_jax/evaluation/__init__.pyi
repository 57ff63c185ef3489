from .alignment import (
    BioViLT as BioViLT,
)
from .alignment import (
    biovil_image as biovil_image,
)
from .alignment import (
    cosine_similarities as cosine_similarities,
)
from .bootstrap import (
    Interval as Interval,
)
from .bootstrap import (
    intervals as intervals,
)
from .bootstrap import (
    mean_interval as mean_interval,
)
from .bootstrap import (
    mean_intervals as mean_intervals,
)
from .chexbert import (
    CheXbert as CheXbert,
)
from .clinical import (
    clinical_f1 as clinical_f1,
)
from .clinical import (
    report_f1 as report_f1,
)
from .features import (
    RadDino as RadDino,
)
from .features import (
    rad_dino_image as rad_dino_image,
)
from .finding_groups import (
    by_group as by_group,
)
from .finding_groups import (
    shard_mean as shard_mean,
)
from .image import (
    frechet_distance as frechet_distance,
)
from .image import (
    inception_score as inception_score,
)
from .image import (
    kernel_distance as kernel_distance,
)
from .inception import (
    Inception as Inception,
)
from .inception import (
    inception_image as inception_image,
)
from .inception import (
    softmax as softmax,
)
from .nearest import (
    Nearest as Nearest,
)
from .nearest import (
    gray_pixels as gray_pixels,
)
from .nearest import (
    pair_image as pair_image,
)
from .nearest import (
    root_mean_square as root_mean_square,
)
from .radgraph import (
    f1_radgraph as f1_radgraph,
)
from .radgraph import (
    load_annotator as load_annotator,
)
from .radiomics import (
    radiomics_distance as radiomics_distance,
)
from .reid import (
    Reidentification as Reidentification,
)
from .streaming import (
    Moments as Moments,
)
from .streaming import (
    frechet_from_moments as frechet_from_moments,
)
from .text import (
    bleu as bleu,
)
from .text import (
    radgraph_reward as radgraph_reward,
)
from .text import (
    radgraph_scores as radgraph_scores,
)
from .text import (
    rouge_l as rouge_l,
)
from .text import (
    text_scores as text_scores,
)
from .text import (
    tokenize as tokenize,
)

__all__ = [
    "BioViLT",
    "CheXbert",
    "Inception",
    "Interval",
    "Moments",
    "Nearest",
    "RadDino",
    "Reidentification",
    "biovil_image",
    "bleu",
    "by_group",
    "clinical_f1",
    "cosine_similarities",
    "f1_radgraph",
    "frechet_distance",
    "frechet_from_moments",
    "gray_pixels",
    "inception_image",
    "inception_score",
    "intervals",
    "kernel_distance",
    "load_annotator",
    "mean_interval",
    "mean_intervals",
    "pair_image",
    "rad_dino_image",
    "radgraph_reward",
    "radgraph_scores",
    "radiomics_distance",
    "report_f1",
    "root_mean_square",
    "rouge_l",
    "shard_mean",
    "softmax",
    "text_scores",
    "tokenize",
]
