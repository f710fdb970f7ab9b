"""`file/write` and `file/read`: file artefacts, which are records of kind file; never paths of a machine.

Written with the SDK, as an extension would be.
"""

import base64
import binascii

import attrs

from swamp_proto.limits import FILE_READ_KEPT_MAX
from swamp_worker.sdk import PlainContext, StepFailed, about, file, method, model, resource


@attrs.frozen
class Write:
    """What is kept."""

    name: str = attrs.field(metadata=about("Name of the artefact", minLength=1, maxLength=256))
    content: str | None = attrs.field(default=None, metadata=about("Its content, as text"))
    base64: str | None = attrs.field(
        default=None, metadata=about("Its content, encoded; instead of `content`")
    )
    content_type: str = attrs.field(
        default="",
        metadata=about("Default: text/plain, or application/octet-stream for `base64`", name="contentType"),
    )


@attrs.frozen
class Kept:
    """What was kept."""

    name: str
    version: int
    size: int
    sha256: str


@model("file/write", version="2026.02.09.1")
class FileWrite:
    """Keep a file artefact"""

    content = file("application/octet-stream", "What was given")
    written = resource(Kept, "Name, version, size and digest of the artefact")

    @method(returns=written)
    def write(self, context: PlainContext[None], arguments: Write) -> Kept:
        """Keep the given content as a new version of a file artefact"""
        if (arguments.content is None) == (arguments.base64 is None):
            raise StepFailed("give `content` or `base64`, and not both")
        if arguments.base64 is not None:
            kind = arguments.content_type or "application/octet-stream"
            try:
                data = base64.b64decode(arguments.base64, validate=True)
            except binascii.Error:
                raise StepFailed("`base64` is not valid base64") from None
        else:
            kind = arguments.content_type or "text/plain"
            data = (arguments.content or "").encode()
        with context.open_file(self.content, arguments.name, content_type=kind) as into:
            into.write(data)
        record = into.record
        assert record is not None
        return Kept(record.name, record.version, record.size, record.sha256)


@attrs.frozen
class Read:
    """What is read."""

    name: str = attrs.field(metadata=about("Name of the artefact", minLength=1))
    model: str | None = attrs.field(
        default=None, metadata=about("Whose it is (default: this model's own)", names_model=True)
    )
    version: int | None = attrs.field(
        default=None, metadata=about("Which version (default: the newest)", minimum=1)
    )


@attrs.frozen
class Found:
    """What was read."""

    name: str
    version: int
    content_type: str = attrs.field(metadata=about(name="contentType"))
    size: int
    text: str | None = attrs.field(default=None, metadata=about("The content, when it is UTF-8"))
    base64: str | None = attrs.field(default=None, metadata=about("The content, when it is not"))
    truncated: bool = attrs.field(default=False, metadata=about("Whether this is only the beginning of it"))


@model("file/read", version="2026.02.09.1")
class FileRead:
    """Read a file artefact"""

    content = resource(Found, "The artefact's content, or its beginning")

    @method(mutates=False, returns=content)
    def read(self, context: PlainContext[None], arguments: Read) -> Found:
        """Read a file artefact of this model or of another one that the definition names"""
        found = context.read_file(arguments.name, model=arguments.model, version=arguments.version)
        if found is None:
            whose = f"the model {arguments.model}" if arguments.model else "this model"
            which = f" in version {arguments.version}" if arguments.version else ""
            raise StepFailed(f"{whose} has no artefact {arguments.name!r}{which}")
        with found.path.open("rb") as file_:
            data = file_.read(FILE_READ_KEPT_MAX)
        record, truncated = found.record, found.path.stat().st_size > len(data)
        text, encoded = _text(data, truncated), None
        if text is None:
            encoded = base64.b64encode(data).decode()
        size = found.path.stat().st_size
        return Found(record.name, record.version, record.content_type, size, text, encoded, truncated)


def _text(data: bytes, truncated: bool) -> str | None:
    """The text that it is; a character that the end of the beginning cuts in two is left out. None: it is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if truncated and error.start > len(data) - 4:
            return data[: error.start].decode()
        return None
