"""Proof by real parts: Postfix, real filters, the corpus, chaos and the benchmark."""
