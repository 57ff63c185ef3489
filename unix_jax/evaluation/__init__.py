"""Metrics of reports and of images, on plain arrays and strings.

* `clinical`: CheXbert's labels of reports, and their F1 over 14 conditions.
* `text`: BLEU, ROUGE-L, RadGraph rewards; `radgraph`: annotations by the `radgraph` package.
* `image`: Fréchet distance, kernel distance, precision/recall/density/coverage, inception score.
* `features`: RAD-DINO features; `alignment`: BioViL-T similarity of image and text.
* `inception`: Inception-v3 features; `radiomics`: distance of radiomics features.
* `nearest`: nearest training images; `reid`: whether two images are of one patient.
* `streaming`: moments of features larger than memory; `groups`: shards and pathologies.
* `bootstrap`: confidence intervals.
"""

import lazy_loader

# The public names stand in __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
