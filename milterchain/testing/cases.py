r"""Scenarios for filters and MTAs, as data files.

A file (`*.case`, UTF-8) holds any number of scenarios. Each says which filter runs, what an SMTP client does,
what the filter must be seen to decide, at which step, and what must arrive at the next hop::

    # The first recipient is refused, the second gets the message.
    case a recipient is refused
    filter verdict
        at rcpt
        recipient <bad@example.test>
        answer 550 5.7.9 not this one
    connect
    > EHLO client.example.test
    > MAIL FROM:<sender@example.test>
    > RCPT TO:<bad@example.test>
    < 550 5.7.9 not this one
    = reject
    > RCPT TO:<good@example.test>
    > DATA
    | Subject: hello
    |
    | The body.
    = accept
    arrives
    from <sender@example.test>
    to <good@example.test>
    | Subject: hello
    |
    | The body.

Empty lines, and lines that begin with `#`, say nothing. The head of a scenario:

case NAME
    Begins it; the name is unique in the file.
on MTA...
    It is meant for these MTAs only; `-MTA` leaves one out.
needs TAG...
    It is meant for MTAs that can do this, such as `tls`, `auth` or `utf8`.
filter NAME
    The filter under test. Its options follow, one a line, indented by four blanks: a key, and a value if
    there is one.

The steps, each with its reply:

connect
    Open a connection, which reads the greeting. The first step; later ones say QUIT and connect again.
> LINE
    Send a command.
| LINE
    A line of a message, below DATA: sent with dots stuffed and a final dot. Left out if DATA was refused.
    `|*N LINE` stands for N such lines.
tls [CERTIFICATE]
    Encrypt, after the reply to STARTTLS; with a certificate of the client if one is named.
closed
    The server closes the connection now, without another word.
drop
    The client breaks the connection off.

What is expected of the step above; without it, the reply must be positive, and a message must arrive:

< CODE [TEXT], < CODE-TEXT
    The lines of the reply; `5xx` stands for any code of that class. A code alone accepts every text. In the
    text an asterisk stands for anything, and `\*` for an asterisk.
= DECISION
    What the filter decided here: `accept`, `reject` (5xx), `tempfail` (4xx), `discard` (a positive reply, and
    nothing arrives), `quarantine` (a positive reply, and the MTA holds the message).
arrives
    What must arrive, in the lines that follow, in any order; what is not mentioned is not looked at:
    `from PATH`; `to PATH`, one for each recipient; `has NAME: VALUE`, a header, with asterisks as above;
    `lacks NAME`; and `| LINE`, the whole message. Parameters behind a path must be there, others may be.
    In the whole message `received` stands for the Received header that the MTA adds; where there is no such
    line it may be anywhere. Date, Message-ID, From, To, Return-Path and Received that are not in the
    expected text are left out, because MTAs add them to messages without them.

MTAs differ. Behind the sign or word of each of these lines (and `received`) names of MTAs may follow in
brackets: `=[sendmail] tempfail`, `<[-postfix] 550`, `|[postfix milterchain] X-A: 1`. The line is then for
these only, and where several lines of which one is needed fit, the last one counts. An MTA that says that it
is like another one (`Mta.like`) is meant by that name too. `load` and the plugin can be told which MTAs there
are; other names are mistakes then.

`\\`, `\*`, `\t`, `\r`, `\n`, `\s` (a blank at the end of a line) and `\xHH` stand for one byte each;
control characters and blanks at the end of a line are mistakes.

`load` reads a file, `run_case` plays a scenario; `milterchain.testing.pytest_plugin` makes each of them a
test.
"""

from milterchain.testing.cases_model import (
    EVERYWHERE,
    Arrives,
    Case,
    CaseFilter,
    Closed,
    Command,
    Connect,
    Content,
    Decision,
    Drop,
    ExpectedReply,
    HasHeader,
    Option,
    Pattern,
    Selected,
    Selector,
    StartTls,
    Step,
    TextLine,
)
from milterchain.testing.cases_mta import Arrival, HopOutbox, Mta, MtaTraits, Outbox
from milterchain.testing.cases_parser import MAX_CONTENT, CaseSyntaxError, load, parse
from milterchain.testing.cases_runner import CASE_TIMEOUT, CaseFailure, FilterStarter, run_case, why_not

__all__ = [
    "CASE_TIMEOUT",
    "EVERYWHERE",
    "MAX_CONTENT",
    "Arrival",
    "Arrives",
    "Case",
    "CaseFailure",
    "CaseFilter",
    "CaseSyntaxError",
    "Closed",
    "Command",
    "Connect",
    "Content",
    "Decision",
    "Drop",
    "ExpectedReply",
    "FilterStarter",
    "HasHeader",
    "HopOutbox",
    "Mta",
    "MtaTraits",
    "Option",
    "Outbox",
    "Pattern",
    "Selected",
    "Selector",
    "StartTls",
    "Step",
    "TextLine",
    "load",
    "parse",
    "run_case",
    "why_not",
]
