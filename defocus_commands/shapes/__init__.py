"""What `defocus make-shapes` draws: a scene, its paint, the outlines of its masks, and the files of a set."""
