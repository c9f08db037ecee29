"""GenEval: whether an image holds the objects, counts, colours and places that its prompt asks for.

`prompts.py` says what is asked, `rules.py` decides from detections, `detections.py` and `detector.py` are where these
come from, `summary.py` is the score. Only `detector.py` and `colors.py` need networks.
"""
