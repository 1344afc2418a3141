"""Content credentials (C2PA) in image files: who signed that a model made the image, read back and checked. Extra `c2pa`.

Specification: C2PA 2.x, https://spec.c2pa.org; the signing is c2pa-python's. Reading opens no address that a file names.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from saferedir.server.config import ProvenanceSettings
from saferedir.server.errors import ServerError
from saferedir.utils.extras import require_extra
from saferedir.utils.packaged import library_version

#: in the place of a certificate's file: one is made when the service starts, and says in its name that it proves nothing
TEST = "test"
TEST_NAME = "saferedir TEST certificate, proves nothing"
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_BY_SUFFIX = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


def _c2pa() -> Any:
    return require_extra("c2pa", "c2pa", "content credentials")


def _context(c2pa: Any) -> Any:
    return c2pa.Context.from_dict(_SETTINGS)


class Signer:
    """Signs image files with one certificate.

    Args:
        chain: certificates in PEM, the signer's first, its issuer's next.
        key: private key of the first, in PEM.
        algorithm: "es256", "es384", "es512", "ps256", "ps384", "ps512" or "ed25519".

    Raises:
        ServerError: they do not fit together, or are none; found out by signing an image.
        MissingExtraError: the extra `c2pa` is not installed.
    """

    def __init__(self, chain: bytes, key: bytes, algorithm: str) -> None:
        self._c2pa = _c2pa()
        info = self._c2pa.C2paSignerInfo(alg=algorithm.encode(), sign_cert=chain, private_key=key, ta_url=None)
        try:
            self._signer = self._c2pa.Signer.from_info(info)
            self.signed(_pixel(), "png", {"image_id": "trial", "model": "none"})
        except self._c2pa.C2paError as error:
            raise ServerError(
                f"images cannot be signed with this certificate and key ({type(error).__name__})."
            ) from error

    @classmethod
    def from_settings(cls, settings: ProvenanceSettings) -> Signer | None:
        """The one that the configuration names; None for none."""
        if not settings.certificate:
            return None
        if settings.certificate == TEST:
            return cls(*development_certificate(), "es256")
        try:
            chain, key = (Path(name).expanduser().read_bytes() for name in (settings.certificate, settings.private_key))
        except OSError as error:
            raise ServerError(f"{error.filename} cannot be read ({error.strerror}); it signs images.") from error
        return cls(chain, key, settings.algorithm)

    def signed(self, file: bytes, output_format: str, facts: dict[str, Any]) -> bytes:
        """The file with credentials that name its audit record and model."""
        manifest = {
            "claim_generator_info": [{"name": "saferedir", "version": library_version()}],
            "title": facts["image_id"],
            "assertions": [
                {
                    "label": "c2pa.actions.v2",
                    "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": _MADE_BY_A_MODEL}]},
                },
                {"label": "io.saferedir.image", "data": {name: facts[name] for name in ("image_id", "model")}},
            ],
        }
        out = io.BytesIO()
        builder = self._c2pa.Builder(json.dumps(manifest), context=_context(self._c2pa))
        builder.sign(self._signer, MEDIA_TYPES[output_format], io.BytesIO(file), out)
        return out.getvalue()


@dataclass(frozen=True)
class Credentials:
    """What a file's credentials say.

    Attributes:
        state: "Trusted", "Valid" (whole, but the signer is nobody whom this machine trusts) or "Invalid".
        signer: common name and organisation of the certificate.
        is_test: whether a test certificate of ours signed it, which proves nothing.
        image_id, model: as signed; "" where they are not among it.
        problems: codes of C2PA.
    """

    state: str
    signer: str
    is_test: bool
    image_id: str
    model: str
    problems: tuple[str, ...]


def read_credentials(file: Path) -> Credentials | None:
    """Those of an image file; None where it has none that can be read.

    Raises:
        MissingExtraError: the extra `c2pa` is not installed.
    """
    c2pa, media_type = _c2pa(), _BY_SUFFIX.get(file.suffix.lower())
    if media_type is None:
        return None
    try:
        reader = c2pa.Reader(media_type, io.BytesIO(file.read_bytes()), context=_context(c2pa))
        facts = json.loads(reader.json())
        manifest = facts["manifests"][facts["active_manifest"]]
    except (c2pa.C2paError, KeyError, ValueError):
        return None
    signature = manifest.get("signature_info", {})
    name = signature.get("common_name", "")
    ours: dict[str, Any] = next(
        (entry["data"] for entry in manifest.get("assertions", ()) if entry["label"] == "io.saferedir.image"), {}
    )
    return Credentials(
        state=str(facts.get("validation_state", "Invalid")),
        signer=", ".join(part for part in (name, signature.get("issuer", "")) if part),
        is_test=name == TEST_NAME,
        image_id=str(ours.get("image_id", "")),
        model=str(ours.get("model", "")),
        problems=tuple(sorted({entry["code"] for entry in facts.get("validation_status", ())})),
    )


def development_certificate() -> tuple[bytes, bytes]:
    """(chain, key) in PEM for development: a fresh key and issuer, valid for 30 days, with a name that says what it is."""
    require_extra("cryptography", "c2pa", "content credentials")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(name: str) -> x509.Name:
        parts = ((NameOID.ORGANIZATION_NAME, "development"), (NameOID.COMMON_NAME, name))
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])

    issuer_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer, now, usages = named("saferedir TEST issuer"), datetime.now(UTC), dict.fromkeys(_USAGES, False)

    def begun(subject: x509.Name, public_key: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(issuer, subject, public_key, x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        )

    root = (
        begun(issuer, issuer_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usages | {"key_cert_sign": True, "crl_sign": True}), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    leaf = (
        begun(named(TEST_NAME), key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usages | {"digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return leaf.public_bytes(pem) + root.public_bytes(pem), private


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
    "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _pixel() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()
