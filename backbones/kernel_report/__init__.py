"""What the Triton kernels compile to and what a Mamba block costs, found without a GPU: `defocus kernel-report`.

``record`` runs code on tensors without memory and keeps the launches, ``backward`` does so for gradients; ``binary``
compiles them; ``ptx`` and ``sass`` read what came out; ``measure`` counts; ``estimate`` makes seconds of it;
``report``, ``tables`` and ``limits`` say it.
"""
