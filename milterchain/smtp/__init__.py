"""ESMTP: grammar, the server that takes mail in, the client that hands it on."""
