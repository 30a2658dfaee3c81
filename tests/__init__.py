import os

os.environ.pop("HF_HUB_CACHE", None)  # a machine's own; tests that need a cache make one
