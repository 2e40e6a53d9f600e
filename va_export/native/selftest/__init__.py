"""The library proves its kernels on the user's GPU, in a process of its own, and takes the fastest that are right.

`prove.py` is the door; `store.py` keeps what was found, `worker.py` is the process, `attention_checks.py` and
`score_checks.py` what it does.
"""
