"""Backbones: which networks there are, their weights, where they are cut, and what runs the frozen part.

    registry.py   every classification network of timm and torchvision by name, and what it expects of an image
    weights.py    weights from a package, a library's own download, a file, or a seed, written into one kind of folder
    backbone.py   reads such a folder
    trained.py    makes such a folder of a run's trained network
    textbook.py   the small network of the textbooks
    cut.py        splits a network at a named module; takes the outputs of several modules in one pass
    cuts.py       prints where a network can be cut
    folding.py    works out once what need not be worked out at every image
    engines.py    runs the frozen part: ONNX Runtime on a CPU, torch on a GPU
    int8.py       the frozen part in eight bits
    passes.py     brings images to it: decoded ahead, at every size and of every view

torch is imported when a network is built, not before: an engine whose export lies in the cache runs without it.
"""
