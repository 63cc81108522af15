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
    "milterchain/chain/briefing.py",
    "milterchain/chain/line.py",
    "milterchain/chain/picture.py",
    "milterchain/chain/settings.py",
    "milterchain/chain/values.py",
    "milterchain/chain/verdict.py",
    "milterchain/smtp/answers.py",
    "milterchain/smtp/client_replies.py",
    "milterchain/smtp/data.py",
    "milterchain/smtp/dialogue.py",
    "milterchain/smtp/grammar.py",
    "milterchain/smtp/stuffing.py",
    "milterchain/proxy/access.py",
    "milterchain/proxy/commands.py",
    "milterchain/proxy/nexthop.py",
    "milterchain/proxy/queue_id.py",
    "milterchain/proxy/received.py",
    "milterchain/proxy/relay_replies.py",
)

if __name__ == "__main__":
    print(",".join(PURE))
