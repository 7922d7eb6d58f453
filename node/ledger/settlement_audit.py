"""Derives from the signed messages what is settled with each peer, to compare with the rows. No SQL here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from node.ledger.projection import Difference
from node.ledger.settlement import SettledRow, row_after
from protocol.errors import RemoteProtocolError
from protocol.signed import Signed, SignedMessage
from protocol.statement import Chain, Parties, Settled, Statement
from protocol.units import PeerId


@dataclass(slots=True)
class SettlementReader:
    """Takes every statement and acknowledgement of a ledger, in its order."""

    chains: dict[PeerId, Chain] = field(default_factory=dict)
    rows: dict[tuple[bytes, int], SettledRow] = field(default_factory=dict)
    """What each completed statement gives, by peer and number."""

    def take(self, signed: Signed[SignedMessage], peer_id: PeerId, where: str) -> list[Difference]:
        """Count a verified message in; return what is wrong with it. Messages of other types are not looked at."""
        parties = _parties(signed)
        if parties is None:
            return []
        if peer_id not in (parties.first, parties.second):
            expected = f"{parties.first.hex()} or {parties.second.hex()}"
            return [Difference(where=where, field="peer_id", stored=peer_id.hex(), expected=expected)]
        chain = self.chains.setdefault(peer_id, Chain(parties=parties))
        try:
            if chain.take_untrusted(signed) and chain.head.statement is not None:
                row = row_after(chain.head.statement, peer_id)
                self.rows[peer_id, row.number] = row
        except RemoteProtocolError as exc:
            kind = signed.envelope.kind
            return [Difference(where=where, field=kind, stored=str(exc), expected=f"a {kind} that follows")]
        return []

    def compare(self, stored: Mapping[tuple[bytes, int], SettledRow]) -> list[Difference]:
        """Return where the rows are not what the statements give."""
        found = []
        for key in sorted(self.rows.keys() | stored.keys()):
            ours, theirs = stored.get(key), self.rows.get(key)
            if ours != theirs:
                where = f"settled {key[1]} with {key[0].hex()}"
                found.append(Difference(where=where, field="row", stored=_text(ours), expected=_text(theirs)))
        return found

    def compare_promises(self, vouchered: Mapping[tuple[bytes, str], int]) -> list[Difference]:
        """Return where a statement says more than the vouchers do; these by peer and our role."""
        found = []
        for peer_id, chain in self.chains.items():
            statement = chain.head.statement
            if statement is None:
                continue
            for party, role in ((peer_id, "provider"), (chain.parties.other(peer_id), "requester")):
                said, held = statement.promised_by(party), vouchered.get((peer_id, role), 0)
                if said > held:
                    where = f"statement {statement.number} with {peer_id.hex()}"
                    name = "promised by them" if role == "provider" else "promised by us"
                    found.append(Difference(where=where, field=name, stored=str(said), expected=f"at most {held}"))
        return found


def _parties(signed: Signed[SignedMessage]) -> Parties | None:
    match signed.message:
        case Statement() as statement:
            return Parties.of(PeerId(statement.first), PeerId(statement.second))
        case Settled() as settled:
            return Parties.of(signed.signer, PeerId(settled.payer))
        case _:
            return None


def _text(row: SettledRow | None) -> str:
    return "missing" if row is None else f"received {row.received}, paid {row.paid}, at {row.at_ms}"
