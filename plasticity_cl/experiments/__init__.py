"""From a spec to results: one run, its fresh references, and many runs at a time."""
