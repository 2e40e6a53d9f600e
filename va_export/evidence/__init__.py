"""Evidence: what only a GPU can show, measured there and kept as one JSON file a GPU and topic.

    document = begin_evidence(describe_device(), commit, ceilings)   # then rows are appended to its lists
    write_evidence(document, folder, topic)                          # checks the form, writes <gpu>-<topic>.json

`document.py` has the form, `device.py` the machine and its ceilings, `timing.py` the clock. The scripts of `scripts/`
are never imported; what they share lives here.
"""
