"""Requests to the control socket: bytes in, a frozen request or one sentence out."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rcm_daemon.errors import RcmError

CONTROL_SCHEMA = "rcm-control-1"


class RequestError(RcmError):
    """A request that is none of those served."""


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class GetState(_Request):
    """Ask for the newest message of all open stacks, or of those with one id, ended ones included."""

    htype: Literal["get_state"]
    stack_id: str = ""


class GetHealth(_Request):
    """Ask for counters, provider and bundle."""

    htype: Literal["get_health"]


class ListBundles(_Request):
    """Ask for the names of the bundles that could be served."""

    htype: Literal["list_bundles"]


class ActivateBundle(_Request):
    """Ask that stacks which open from now on are labelled with another bundle, `name@version`."""

    htype: Literal["activate_bundle"]
    bundle: str


Request = GetState | GetHealth | ListBundles | ActivateBundle
_ADAPTER: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="htype")])
SERVED = ("get_state", "get_health", "list_bundles", "activate_bundle")


def parse_request(frame: bytes) -> Request:
    """Read one request.

    Raises
    ------
    RequestError
        With the sentence to answer.
    """
    try:
        fields = json.loads(frame)
    except (ValueError, RecursionError):
        raise RequestError("a request is one JSON object in UTF-8") from None
    try:
        return _ADAPTER.validate_python(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if fault["type"].startswith("union_tag") or not isinstance(fields, dict):
            got = ascii(fields.get("htype") if isinstance(fields, dict) else fields)[:80]
            raise RequestError(f"htype of a request is one of {', '.join(SERVED)}, got {got}") from None
        key = fault["loc"][-1]
        raise RequestError(
            f"{key} of {fields['htype']}: {fault['msg']}, got {ascii(fault['input'])[:80]}"
        ) from None
