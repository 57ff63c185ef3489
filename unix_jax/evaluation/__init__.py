"""Metrics of reports and of images, on plain arrays and strings.

* `clinical`: CheXbert's labels of reports, and their F1 over 14 conditions.
* `text`: BLEU, ROUGE-L, RadGraph rewards; `radgraph`: annotations by the `radgraph` package.
* `image`: Fréchet distance, kernel distance, precision/recall/density/coverage, inception score.
* `features`: RAD-DINO features; `alignment`: BioViL-T similarity of image and text.
* `streaming`: moments of features larger than memory; `groups`: shards and pathologies.
* `bootstrap`: confidence intervals.
"""
