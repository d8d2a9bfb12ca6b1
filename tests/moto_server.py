"""moto's server with conditional writes that are atomic, as S3's are: moto looks and stores in two steps."""

from __future__ import annotations

import threading

from moto.s3.responses import S3Response
from moto.server import main

ONE_AT_A_TIME = threading.Lock()
put_object = S3Response.put_object


def put_alone(self: S3Response) -> object:
    """Store an object while no other one is being stored."""
    with ONE_AT_A_TIME:
        return put_object(self)


if __name__ == "__main__":
    S3Response.put_object = put_alone
    main()
