"""The local proxy: one gateway's API, and a chat page, for the programs and browsers of a machine.

`gz-trio proxy` starts it. It needs the extra `proxy`.
"""

try:
    from ._proxy import Proxy, loopback_address, open_proxy
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("hypercorn", "prometheus_client", "starlette"):
        raise
    raise ModuleNotFoundError(
        f"the proxy needs the package {error.name}, which comes with the extra proxy: "
        "pip install 'gz-trio[proxy]'",
        name=error.name,
    ) from None

__all__ = ["Proxy", "loopback_address", "open_proxy"]
