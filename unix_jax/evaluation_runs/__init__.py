"""Runs of a model over a data set, and their results: files, metrics, a page.

Imports `inference` and `evaluation`, which are independent of each other.

* `journal`, `run`: items in batches, each exactly once, whatever kills the run.
* `reports`, `images`: the two kinds of items.
* `score`: metrics of reports made anywhere; `image_set`, `image_scores`, `image_results`: images.
* `nearest_training`: generated images beside training images; `radiomics_tables`: features brought.
* `original_tables`: CSV files with the original's columns.
* `results`: results.json and the table; `html_report`, `charts`: the page; `paper`: its rows.
"""
