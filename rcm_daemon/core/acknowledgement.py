"""The answer to one message of acknowledged ingest: `rcm-ack-1`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from rcm_daemon.core.records import Slice

if TYPE_CHECKING:
    from rcm_daemon.core.records import Message
    from rcm_daemon.core.rejection import Rejection

Status = Literal["stored", "duplicate", "conflict", "rejected"]


class Ack(BaseModel):
    """What became of one message; every key always present.

    `of` is the htype answered, `""` where it could not be read; numbers that could not be read are -1, as
    is the index of what is no slice. `credit` is how many messages may be unanswered at any time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    htype: Literal["ack"] = "ack"
    schema_: Literal["rcm-ack-1"] = Field(alias="schema", default="rcm-ack-1")
    instrument: str
    run_id: str
    msg_number: int = Field(ge=-1)
    of: Literal["stack_start", "slice", "stack_end", "heartbeat", ""]
    stack_id: str
    index: int = Field(ge=-1)
    status: Status
    error: str
    credit: int = Field(ge=1)


@dataclass
class Reply:
    """An answer on its way to `peer`; it goes out when what it says is on disk."""

    peer: bytes
    instrument: str
    run_id: str
    msg_number: int
    of: Literal["stack_start", "slice", "stack_end", "heartbeat", ""]
    stack_id: str
    index: int
    status: Status
    error: str = ""

    @classmethod
    def to(cls, peer: bytes, message: Message, status: Status) -> Reply:
        """Answer a message that has been taken."""
        header, index = (
            (message.header, message.header.index) if isinstance(message, Slice) else (message, -1)
        )
        return cls(
            peer,
            header.instrument,
            header.run_id,
            header.msg_number,
            header.htype,
            header.stack_id,
            index,
            status,
        )

    @classmethod
    def refusal(cls, peer: bytes, rejection: Rejection) -> Reply:
        """Answer a message that has been refused."""
        origin = rejection.origin
        return cls(
            peer,
            origin.instrument,
            origin.run_id or "",
            origin.msg_number,
            origin.htype,  # type: ignore[arg-type]  # the wire lets only these through
            origin.stack_id,
            origin.index,
            "rejected",
            str(rejection),
        )

    def refuse(self, error: str) -> None:
        """Turn into a refusal."""
        self.status, self.error = "rejected", error

    def to_json(self, credit: int) -> bytes:
        """Write the answer."""
        fields = {key: value for key, value in vars(self).items() if key != "peer"}
        return Ack(**fields, credit=credit).model_dump_json(by_alias=True).encode()
