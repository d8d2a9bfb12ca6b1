"""Ray's token: others must not read it, and a Ray that asks for none is refused.

Ray runs what it is sent. Without token authentication whoever reaches one of its ports runs code as its user.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from embedder.errors import ConfigError

GCS_METHOD = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
"""A call that changes nothing; Ray answers it to everybody who may make any other call."""
CLIENT_METHOD = "/ray.rpc.RayletDriver/ClusterInfo"
"""The same for an address that begins with `ray://`."""
PROBE_S = 20.0
LOOPBACK = ("127.0.0.1", "::1")
REMEDY = (
    "end it (`ray stop`), make a token (`ray get-auth-token --generate > /dev/null; chmod 600 ~/.ray/auth_token`), and "
    "start it again with RAY_AUTH_MODE=token on every node and here; or, where the network keeps everybody else out, "
    "set cluster.allow_no_authentication=true"
)


def token_file() -> Path | None:
    """The file that Ray reads its token from; None where the environment holds the token itself."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _mode() -> str:
    """What the environment says of a Ray that is started here; Ray 2.60 asks for a token where it says nothing."""
    return os.environ.get("RAY_AUTH_MODE", "token").lower()


def refuse_shared_token() -> None:
    """Refuse a token that others than its owner can read, because with it they run code on the cluster.

    Raises:
        ConfigError: with the command that closes the file.
    """
    path = token_file()
    if path is None or _mode() != "token" or not path.exists():
        return
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(
            f"{path}: Ray's token can be read by others (mode {mode:03o}), who can then run code on the cluster; "
            f"`chmod 600 {path}`, and make a new token if strangers use this machine"
        )


def is_own_ray() -> bool:
    """Tell whether the Ray of this process is one that it starts, or has started, on this machine."""
    return os.environ.get("RAY_ADDRESS", "") in {"", "local"}


def prepare_own_ray(node_address: str, allowed: bool) -> None:
    """Before this process starts a Ray of its own: make a token for it, unless there is one.

    `node_address` is what Ray calls this machine: with any but a loopback address it listens on all interfaces.

    Raises:
        ConfigError: the environment wants no token, or others can read it.
    """
    if _mode() != "token":
        if not allowed and node_address not in LOOPBACK:
            raise ConfigError(
                f"RAY_AUTH_MODE={_mode()}: the Ray that starts here listens on {node_address}, and whoever reaches it "
                "could run code on it; unset RAY_AUTH_MODE, or, where the network keeps everybody else out, set "
                "cluster.allow_no_authentication=true"
            )
        return
    path = token_file()
    if path is None or path.exists():
        refuse_shared_token()
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Ray would write the file itself, but readable by everybody (2.60.0).
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    except OSError:
        # A home that cannot be written to: the token then lives as long as this process and the Ray it starts.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def refuse_open_ray(address: str, allowed: bool) -> None:
    """Refuse a Ray that answers a stranger.

    `address` is host:port of its head (GCS), or `ray://host:port` of its client server.

    Raises:
        ConfigError: it answers without a token, or does not say whether it would.
    """
    if allowed:
        return
    reason = answer_to_a_stranger(address)
    if reason == "UNAUTHENTICATED":
        return
    if reason == "OK":
        raise ConfigError(
            f"Ray at {address} asks for no token, so whoever reaches its ports can run code on it; {REMEDY}"
        )
    if reason == "DEADLINE_EXCEEDED":
        raise ConfigError(
            f"no Ray answers at {address} within {PROBE_S:g} s; look whether its head is up (`ray status`), or correct "
            "RAY_ADDRESS; without RAY_ADDRESS jobs and service start a Ray of their own"
        )
    raise ConfigError(f"Ray at {address} does not tell whether it asks for a token ({reason}); {REMEDY}")


def answer_to_a_stranger(address: str) -> str:
    """The gRPC status of a harmless call without a token: UNAUTHENTICATED where Ray asks for one, OK where not.

    The environment of this process does not tell: with a token in it one can connect to a Ray that asks for none.
    """
    # Imported here because grpc comes with Ray, and help or a refused run file needs neither.
    import grpc

    method = CLIENT_METHOD if address.startswith("ray://") else GCS_METHOD
    # Not through a proxy for HTTP, as Ray's own calls.
    options = [("grpc.enable_http_proxy", 0)]
    target = address.removeprefix("ray://")
    certificates = _certificates()
    if certificates is None:
        channel = grpc.insecure_channel(target, options)
    else:
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(*certificates), options)
    with channel:
        try:
            channel.unary_unary(method)(b"", timeout=PROBE_S, wait_for_ready=True)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _certificates() -> tuple[bytes, bytes, bytes] | None:
    """Root certificate, key and certificate where Ray's own connections are encrypted; these are no token."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in {"1", "true"}:
        return None
    names = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")
    root, key, certificate = (Path(os.environ[name]).read_bytes() for name in names)
    return root, key, certificate
