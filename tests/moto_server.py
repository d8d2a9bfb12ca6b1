"""moto's server as the tests need it.

Its conditional writes are atomic, as S3's are: moto looks and stores in two steps. It lists a hundred objects at a
time, where S3 lists a thousand, so that few make a list of several answers.
"""

from __future__ import annotations

import threading

from moto.s3.responses import S3Response
from moto.server import main

ONE_AT_A_TIME = threading.Lock()
put_object, list_objects = S3Response.put_object, S3Response.list_objects_v2


def put_alone(self: S3Response) -> object:
    """Store an object while no other one is being stored."""
    with ONE_AT_A_TIME:
        return put_object(self)


def list_a_hundred(self: S3Response) -> object:
    """List objects as if the client had asked for no more."""
    self.querystring["max-keys"] = ["100"]
    return list_objects(self)


if __name__ == "__main__":
    S3Response.put_object, S3Response.list_objects_v2 = put_alone, list_a_hundred
    main()
