"""The web page: reports of uploaded X-rays, and X-rays generated from text.

    choices.py    validation of visitors' inputs
    bundled.py    the model and the example X-rays of the repository
    figures.py    X-rays, generated images and messages as self-contained HTML
    actions.py    what the buttons' actions have in common; none of them knows Gradio
    report_actions.py   reading X-rays and writing reports
    image_actions.py    generating images
    image_models.py     what generates them: UniX, or a diffusers checkpoint
    page.py       the Gradio page
    style.py      its style
    request_limits.py   allowed routes, size of requests, headers
    server.py     the server

No output is written to disk: images are embedded in the page. An upload is kept as a file for a few
minutes, in a directory that is removed when the server stops.
"""
