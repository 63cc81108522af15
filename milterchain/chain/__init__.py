"""The engine: SMTP sessions and messages through milters, without knowing any front end."""

from milterchain.chain.client import AuthInfo, ClientInfo, TLSInfo
from milterchain.chain.observer import Observer, Snapshot
from milterchain.chain.pipeline import ContentOutcome, Hold, MemberReport
from milterchain.chain.session import Chain, ChainSession
from milterchain.chain.settings import DefaultAction, MilterSettings
from milterchain.chain.verdict import Kind, Verdict

__all__ = [
    "AuthInfo",
    "Chain",
    "ChainSession",
    "ClientInfo",
    "ContentOutcome",
    "DefaultAction",
    "Hold",
    "Kind",
    "MemberReport",
    "MilterSettings",
    "Observer",
    "Snapshot",
    "TLSInfo",
    "Verdict",
]
