"""A page in the browser: an image, a trained network, what it finds and where it looks (`defocus app`).

`predictions` is what is shown and needs no framework; `transformers`, `openmmlab` and `detectron2` open checkpoints,
each imported where one of its framework is opened; `looking` runs a network and its maps; `page` alone imports gradio.
"""
