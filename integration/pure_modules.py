"""Print, comma-separated, the modules whose every line and branch the unit tests must cover."""

PURE = (
    "milterchain/errors.py",
    "milterchain/mail/*.py",
    "milterchain/milter/flags.py",
    "milterchain/milter/payloads.py",
    "milterchain/milter/commands.py",
    "milterchain/milter/responses.py",
    "milterchain/milter/messages.py",
    "milterchain/milter/framing.py",
    "milterchain/milter/macros.py",
    "milterchain/milter/negotiation.py",
    "milterchain/milter/state.py",
    "milterchain/milter/connection.py",
    "milterchain/milter/endpoint.py",
    "milterchain/chain/settings.py",
    "milterchain/chain/verdict.py",
    "milterchain/smtp/grammar.py",
    "milterchain/smtp/client_replies.py",
)

if __name__ == "__main__":
    print(",".join(PURE))
