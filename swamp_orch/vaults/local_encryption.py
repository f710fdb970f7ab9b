"""The built-in vault type: one encrypted file per secret, in the repository's `.swamp/secrets`.

What is where, for the vault `main`:

    .swamp/secrets/local_encryption/main/data-key     the vault's random data key, wrapped
    .swamp/secrets/local_encryption/main/<key>.enc    one secret, AES-256-GCM under the data key
    .swamp/secrets/.keys/local_encryption/main        the wrapping key (0600), unless it is kept elsewhere

Rules:
1. The wrapping key is never in the folder of the ciphertext: a file of its own, a file the configuration
   names (`keyFile`), or the variable SWAMP_VAULT_KEY; which one is recorded when the vault is made and never
   guessed.
2. Every ciphertext is bound to vault and key (additional data), so files cannot be exchanged unnoticed.
3. Files are 0600 in folders 0700, written to a temporary file, fsynced, renamed, and the folder fsynced. One
   file per secret: two processes that store different secrets cannot lose each other's.
4. No absolute path is stored: the repository may be moved, and `.swamp` restored from a backup.

It does not know what secrets are for.
"""

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import attrs

from swamp_orch.definitions.files import disk_error, make_folder, remove_file, write_atomically
from swamp_orch.vaults.interface import VaultSettings, check_key
from swamp_proto.errors import AlreadyExists, Broken, LocalError, NotFound
from swamp_proto.limits import VAULT_SECRET_MAX

TYPE: Final = "local_encryption"
KEY_VARIABLE: Final = "SWAMP_VAULT_KEY"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_HEX_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")
_ENVIRONMENT: Final = "environment"
_FILE: Final = "file"
_SUFFIX: Final = ".enc"
_VERSION: Final = 1


class LocalEncryption:
    """The type."""

    title = "Local Encryption"

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """`keyFile` (optional): the file that holds the wrapping key as 64 hex digits; made when missing."""
        for name in config:
            if name != "keyFile":
                raise LocalError(
                    f"a {TYPE} vault has no setting {name!r}", hint="its only setting is `keyFile`"
                )
        if "keyFile" in config and not (isinstance(config["keyFile"], str) and config["keyFile"]):
            raise LocalError(
                "`keyFile` must be the path of a file", hint='{"keyFile": "~/.config/swamp/vault.key"}'
            )
        return dict(config)

    def create(self, settings: VaultSettings) -> None:
        LocalVault(settings).data_key(make=True)

    def open(self, settings: VaultSettings) -> "LocalVault":
        return LocalVault(settings)


@attrs.define
class LocalVault:
    """One vault."""

    _settings: VaultSettings
    _data_key: bytes | None = attrs.field(repr=False, default=None)

    @property
    def name(self) -> str:
        return self._settings.name

    @property
    def type(self) -> str:
        return self._settings.type

    def get(self, key: str) -> str:
        check_key(key)
        path = self._path(key)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise self._unknown(key) from None
        except OSError as error:
            raise disk_error("read", path, error) from error
        damaged = self._damaged(
            f"secret {key!r} of vault {self.name!r}", path, f"swamp vault put {self.name} {key}"
        )
        nonce, sealed = _unpack(raw, "data", damaged)
        try:
            return _open(self.data_key(), nonce, sealed, self._bound(key), damaged).decode()
        except UnicodeDecodeError:
            raise damaged from None

    def put(self, key: str, value: str, overwrite: bool) -> bool:
        check_key(key)
        try:
            plain = value.encode()
        except UnicodeEncodeError:
            raise LocalError(f"the value of {key!r} is not Unicode text") from None
        if len(plain) > VAULT_SECRET_MAX:
            raise LocalError(
                f"the value of {key!r} is {len(plain)} bytes long; {VAULT_SECRET_MAX} is the most"
            )
        nonce = os.urandom(NONCE_BYTES)
        text = _pack("data", nonce, _seal(self.data_key(make=True), nonce, plain, self._bound(key)))
        path = self._path(key)
        existed = path.exists()
        if existed and not overwrite:
            raise self._exists(key)
        try:
            write_atomically(path, text, mode=0o600, new=not overwrite)
        except AlreadyExists:
            raise self._exists(key) from None
        return existed

    def delete(self, key: str) -> bool:
        check_key(key)
        return remove_file(self._path(key))

    def keys(self) -> list[str]:
        folder = self._settings.storage
        try:
            names = [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise disk_error("read", folder, error) from error
        # A name that starts with a dot is a temporary file of a write that did not finish.
        return sorted(
            unquote(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX) and name[0] != "."
        )

    def data_key(self, *, make: bool = False) -> bytes:
        """The vault's data key, unwrapped; with `make`, made when the vault is new. Raises `Broken`."""
        if self._data_key is None:
            path = self._settings.storage / "data-key"
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                if not make:
                    raise Broken(
                        f"vault {self.name!r} has secrets but no data key: {path} is missing",
                        hint=f"restore {path} from a backup",
                    ) from None
                raw = self._make_data_key(path)
            except OSError as error:
                raise disk_error("read", path, error) from error
            self._data_key = self._unwrap(path, raw)
        return self._data_key

    def _make_data_key(self, path: Path) -> bytes:
        if self.keys():
            raise Broken(
                f"vault {self.name!r} has secrets but no data key: {path} is missing",
                hint=f"restore {path} from a backup, or remove {path.parent} and store the secrets again",
            )
        source = (
            _ENVIRONMENT if os.environ.get(KEY_VARIABLE) and "keyFile" not in self._settings.config else _FILE
        )
        wrapping = self._wrapping_key(source, make=True)
        make_folder(path.parent.parent, 0o700)
        make_folder(path.parent, 0o700)
        nonce = os.urandom(NONCE_BYTES)
        sealed = _seal(wrapping, nonce, os.urandom(KEY_BYTES), self._bound(None))
        text = _pack("wrapped", nonce, sealed, wrappedBy=source, keyId=_key_id(wrapping))
        try:
            write_atomically(path, text, mode=0o600, new=True)
        except AlreadyExists:  # another process was first; its key is the vault's
            return path.read_bytes()
        return text.encode()

    def _unwrap(self, path: Path, raw: bytes) -> bytes:
        damaged = self._damaged(f"the data key of vault {self.name!r}", path, f"restore {path} from a backup")
        nonce, sealed = _unpack(raw, "wrapped", damaged)
        document = json.loads(raw)
        source = document.get("wrappedBy")
        if source not in (_ENVIRONMENT, _FILE):
            raise damaged
        wrapping = self._wrapping_key(source)
        if document.get("keyId") != _key_id(wrapping):
            held = KEY_VARIABLE if source == _ENVIRONMENT else str(self._key_file())
            raise Broken(f"the key in {held} is not the one vault {self.name!r} was made with")
        return _open(wrapping, nonce, sealed, self._bound(None), damaged)

    def _wrapping_key(self, source: str, *, make: bool = False) -> bytes:
        if source == _ENVIRONMENT:
            text = os.environ.get(KEY_VARIABLE, "")
            if not text:
                raise Broken(
                    f"vault {self.name!r} was made with the key in {KEY_VARIABLE}, which is not set",
                    hint=f"export {KEY_VARIABLE}=… and try again",
                )
            return _key_from(text, KEY_VARIABLE)
        path = self._key_file()
        while True:
            try:
                return _key_from(path.read_text(), str(path))
            except FileNotFoundError:
                if not make:
                    raise Broken(
                        f"the key of vault {self.name!r} is missing: {path}",
                        hint=f"restore {path} from a backup",
                    ) from None
            except UnicodeDecodeError:
                raise _bad_key(str(path)) from None
            except OSError as error:
                raise disk_error("read", path, error) from error
            if "keyFile" not in self._settings.config:
                for folder in (self._settings.keys.parent, self._settings.keys, path.parent):
                    make_folder(folder, 0o700)
            try:
                write_atomically(path, os.urandom(KEY_BYTES).hex() + "\n", mode=0o600, new=True)
            except AlreadyExists:
                continue  # another process was first

    def _key_file(self) -> Path:
        named = self._settings.config.get("keyFile")
        if named:
            return self._settings.root / Path(str(named)).expanduser()
        return self._settings.keys / self.type / self.name

    def _path(self, key: str) -> Path:
        return self._settings.storage / f"{_quote(key)}{_SUFFIX}"

    def _bound(self, key: str | None) -> bytes:
        """The additional data of a ciphertext; None is the data key."""
        return json.dumps(["swamp-vault", _VERSION, self.type, self.name, key]).encode()

    def _unknown(self, key: str) -> NotFound:
        return NotFound(
            f"Secret '{key}' not found in vault '{self.name}'", hint=f"swamp vault list-keys {self.name}"
        )

    def _exists(self, key: str) -> AlreadyExists:
        return AlreadyExists(
            f"Secret '{key}' already exists in vault '{self.name}'.", hint="add -y to overwrite it"
        )

    def _damaged(self, what: str, path: Path, hint: str) -> Broken:
        return Broken(f"{what} cannot be read: {path} is damaged or was not written for it", hint=hint)


def _quote(key: str) -> str:
    """A file name of its own for every key, also where file names do not tell `A` from `a`."""
    plain = "abcdefghijklmnopqrstuvwxyz0123456789-_"
    return "".join(
        letter
        if letter in plain or (letter == "." and at)
        else "".join(f"%{byte:02X}" for byte in letter.encode())
        for at, letter in enumerate(key)
    )


def _pack(name: str, nonce: bytes, sealed: bytes, **more: str) -> str:
    document = {
        "version": _VERSION,
        **more,
        "nonce": base64.b64encode(nonce).decode(),
        name: base64.b64encode(sealed).decode(),
    }
    return json.dumps(document) + "\n"


def _unpack(raw: bytes, name: str, damaged: Broken) -> tuple[bytes, bytes]:
    try:
        document = json.loads(raw)
        if document["version"] != _VERSION:
            raise damaged
        nonce = base64.b64decode(document["nonce"], validate=True)
        sealed = base64.b64decode(document[name], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError):
        raise damaged from None
    if len(nonce) != NONCE_BYTES:
        raise damaged
    return nonce, sealed


def _seal(key: bytes, nonce: bytes, plain: bytes, bound: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key).encrypt(nonce, plain, bound)


def _open(key: bytes, nonce: bytes, sealed: bytes, bound: bytes, damaged: Broken) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(nonce, sealed, bound)
    except (InvalidTag, ValueError):
        raise damaged from None


def _key_id(key: bytes) -> str:
    """Tells keys apart without saying anything about them: the key has 256 random bits."""
    return hashlib.sha256(b"swamp-vault-key\0" + key).hexdigest()[:16]


def _key_from(text: str, where: str) -> bytes:
    text = text.strip()
    if _HEX_KEY.fullmatch(text) is None:
        raise _bad_key(where)
    return bytes.fromhex(text)


def _bad_key(where: str) -> Broken:
    return Broken(f"{where} does not hold a key of 64 hex digits", hint="make one with: openssl rand -hex 32")
