"""This project's checkpoint directory, the published layouts, and the key tables between them."""
