"""Runs of a model over a data set, and their results: files, metrics, a page.

Imports `inference` and `evaluation`, which are independent of each other.

* `items`, `evaluation_files`: items in batches, each exactly once, even if the run is killed.
* `report_runs`, `image_runs`: generation of reports and of images.
* `texts`, `score`: reports of any source, and their metrics.
* `image_set`, `image_scores`, `image_results`: images of any source, their metrics and outputs.
* `nearest_training`: nearest training images; `radiomics_tables`: features in the user's files.
* `original_tables`: CSV files with the original's columns.
* `results`: results.json and the table; `html_report`, `charts`: the page; `paper`: its figures.
"""
