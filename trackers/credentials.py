"""Whether W&B could be used here, found out from files and the environment: no network, no import of wandb.

It reads what the client reads: WANDB_BASE_URL or the client's settings file for the server's address,
WANDB_API_KEY or netrc for the key.
"""

import configparser
import importlib.util
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

# W&B's own service: the address that the client asks since 0.31, and the one that it asked before.
SERVICE = ("https://api.forge.coreweave.com", "https://api.wandb.ai")


def server_url() -> str:
    """The W&B server that the client would talk to."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url.rstrip("/")
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(Path(folder) / "settings")
    except configparser.Error:
        return SERVICE[0]  # the client says what is wrong with its file
    return settings.get("default", "base_url", fallback=SERVICE[0]).rstrip("/")


def key_source() -> str | None:
    """Where an API key for that server comes from: "WANDB_API_KEY", a netrc file, or None."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    url = server_url()
    hosts = [urlsplit(address).netloc for address in (SERVICE if url in SERVICE else (url,))]
    path = _netrc_path()
    try:
        entries = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        return None
    return str(path) if any(entries.authenticators(host) for host in hosts) else None


def obstacle() -> str | None:
    """Why W&B cannot be the tracker, or None if it may be tried."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in ("online", "shared"):
        return f"WANDB_MODE={mode}, and W&B cannot read artifacts without its server"
    if importlib.util.find_spec("wandb") is None:
        return "the package wandb is not installed"
    if key_source() is None:
        return f"no API key for {server_url()} in WANDB_API_KEY or netrc"
    return None


def _netrc_path() -> Path:
    if path := os.environ.get("NETRC"):
        return Path(path).expanduser()
    candidates = [Path.home() / ".netrc", Path.home() / "_netrc"]
    return next((path for path in candidates if path.exists()), candidates[0])
