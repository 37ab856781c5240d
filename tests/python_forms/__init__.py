"""Small models in many forms of Python, each with its oracle: the same source with RegBN written in by hand."""
