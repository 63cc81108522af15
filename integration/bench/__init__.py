"""The benchmark: `python -m integration.bench`, see `--help`.

milterchain against Postfix with the same filters and the same sink, in the same run, in alternating
rounds; the table shows medians, their ratio, and the target where there is one.
"""
