//! Keys that tokens are verified with. The type of a key fixes the algorithm: a token cannot choose.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use foldhash::fast::FixedState;
use ring::{hmac, signature};
use rustls_pki_types::pem::{self, PemObject, SectionKind};
use serde::Deserialize;
use std::hash::BuildHasher;

/// Keys in one file, at most.
pub const TOKEN_KEYS_MAX: usize = 100;

/// Bytes of a shared secret, at least: those of the hash (RFC 7518 section 3.2).
pub const TOKEN_SECRET_MIN: usize = 32;

/// What a key can verify.
#[derive(Clone)]
enum Material {
    Hmac(hmac::Key),
    /// RSAPublicKey in DER.
    Rsa(Vec<u8>),
    /// An uncompressed point of P-256.
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// One key.
#[derive(Clone)]
pub struct Key {
    /// Its name in tokens.
    pub kid: Option<String>,
    /// Tells it from others; 0 for none.
    pub version: u64,
    material: Material,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("algorithm", &self.algorithm()).finish()
    }
}

impl Key {
    fn new(kid: Option<String>, material: Material, content: &[u8]) -> Key {
        Key { kid, version: fingerprint(content), material }
    }

    /// The algorithm of its signatures, as tokens name it.
    pub fn algorithm(&self) -> &'static str {
        match self.material {
            Material::Hmac(_) => "HS256",
            Material::Rsa(_) => "RS256",
            Material::P256(_) => "ES256",
            Material::Ed25519(_) => "EdDSA",
        }
    }

    /// Whether a signature of `message` is this key's.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let by = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            signature::UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
        };
        match &self.material {
            Material::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
            Material::Rsa(key) => by(&signature::RSA_PKCS1_2048_8192_SHA256, key),
            Material::P256(key) => by(&signature::ECDSA_P256_SHA256_FIXED, key),
            Material::Ed25519(key) => by(&signature::ED25519, key),
        }
    }
}

fn fingerprint(content: &[u8]) -> u64 {
    // Not against anybody: it only tells the keys of one operator apart.
    FixedState::default().hash_one(content).max(1)
}

/// Whether the content of a key file is a shared secret: it is no PEM file, whatever text stands before the first key in it. What is taken
/// for a secret and is none lets everybody make tokens who knows the public key.
pub fn is_secret(content: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN";
    // Of two bytes for each character one is 0.
    let text: Vec<u8> = content.iter().copied().filter(|b| *b != 0).collect();
    !text.windows(BEGIN.len()).any(|part| part == BEGIN)
}

/// What a file is that is neither a PEM file nor a secret: a public key in another form, which many may know.
fn published(content: &[u8]) -> Option<&'static str> {
    let json: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(content).ok();
    if json.is_some() {
        return Some("it is JSON and no shared secret: auth.jwt.jwks_file takes a JSON Web Key Set");
    }
    let openssh: [&[u8]; 3] = [b"ssh-", b"ecdsa-sha2-", b"---- BEGIN SSH2"];
    let other =
        spki(content).is_some() || openssh.iter().any(|start| content.trim_ascii_start().starts_with(start));
    other.then_some("it is a public key and no shared secret: write it as PEM (BEGIN PUBLIC KEY)")
}

/// Whether a set of keys has a shared secret among them.
pub fn has_secret(content: &[u8]) -> bool {
    let set: Result<Set, _> = serde_json::from_slice(content);
    set.is_ok_and(|set| set.keys.iter().any(|k| k.kty == "oct"))
}

/// The keys of a key file: a PEM file of public keys, or a shared secret.
///
/// # Errors
/// Why there are none, without what is in the file.
pub fn of_key_file(content: &[u8]) -> Result<Vec<Key>, String> {
    if is_secret(content) {
        if let Some(why) = published(content) {
            return Err(why.to_owned());
        }
        let secret = content.strip_suffix(b"\n").unwrap_or(content);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        return of_secret(None, secret).map(|key| vec![key]);
    }
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(content) {
        let (kind, der) = section.map_err(|e: pem::Error| format!("not a PEM file: {e}"))?;
        match kind {
            SectionKind::PublicKey => keys.push(of_spki(&der)?),
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err("it holds a private key; only who makes tokens may have that: \
                            `openssl pkey -in KEY -pubout` gives the public one"
                    .to_owned());
            }
            _ => return Err("it holds something else than public keys (BEGIN PUBLIC KEY)".to_owned()),
        }
    }
    bounded(keys)
}

fn bounded(keys: Vec<Key>) -> Result<Vec<Key>, String> {
    match keys.len() {
        0 => Err(
            "it has no key that can be used: RSA (RS256), P-256 (ES256), Ed25519 (EdDSA) or a secret (HS256)"
                .to_owned(),
        ),
        n if n > TOKEN_KEYS_MAX => Err(format!("it has more than {TOKEN_KEYS_MAX} keys")),
        _ => Ok(keys),
    }
}

fn of_secret(kid: Option<String>, secret: &[u8]) -> Result<Key, String> {
    if secret.len() < TOKEN_SECRET_MIN {
        return Err(format!(
            "a shared secret has at least {TOKEN_SECRET_MIN} bytes, and this one {}",
            secret.len()
        ));
    }
    Ok(Key::new(kid, Material::Hmac(hmac::Key::new(hmac::HMAC_SHA256, secret)), secret))
}

const RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];
const EC: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01];
const P256: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];
const ED25519: &[u8] = &[0x2B, 0x65, 0x70];

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;
const BIT_STRING: u8 = 0x03;
const INTEGER: u8 = 0x02;

/// One element of DER with this tag, and what comes behind it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => {
            let (len, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(len))?
}

/// Object identifier of a key's kind, its parameter if that is one too, and the key.
type Spki<'a> = (&'a [u8], Option<&'a [u8]>, &'a [u8]);

/// SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).
fn spki(der: &[u8]) -> Option<Spki<'_>> {
    let (info, _) = element(der, SEQUENCE)?;
    let (algorithm, rest) = element(info, SEQUENCE)?;
    let (id, parameters) = element(algorithm, OBJECT_ID)?;
    let (bits, _) = element(rest, BIT_STRING)?;
    let key = bits.strip_prefix(&[0])?;
    Some((id, element(parameters, OBJECT_ID).map(|(id, _)| id), key))
}

fn of_spki(der: &[u8]) -> Result<Key, String> {
    let (id, parameter, key) = spki(der).ok_or("a public key in it cannot be read")?;
    let material = match (id, parameter) {
        (RSA, _) => Material::Rsa(key.to_vec()),
        (EC, Some(P256)) => Material::P256(key.to_vec()),
        (ED25519, _) => Material::Ed25519(key.to_vec()),
        _ => return Err("a public key in it is neither RSA, P-256 nor Ed25519".to_owned()),
    };
    Ok(Key::new(None, material, der))
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Entry>,
}

/// A key of a set (RFC 7517, RFC 7518 section 6, RFC 8037).
#[derive(Deserialize)]
struct Entry {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

/// The keys of a set. Those that are not for signatures, or of another kind, are left out.
///
/// # Errors
/// Why there are none, without what is in the file.
pub fn of_set(content: &[u8]) -> Result<Vec<Key>, String> {
    let set: Set = serde_json::from_slice(content)
        .map_err(|e| format!("not a JSON Web Key Set: line {}, column {}", e.line(), e.column()))?;
    let mut keys = Vec::new();
    for (at, entry) in set.keys.into_iter().enumerate() {
        if entry.usage.as_deref().is_some_and(|usage| usage != "sig") {
            continue;
        }
        let wanted = entry.alg.clone();
        let Some(key) = of_entry(entry).map_err(|why| format!("key {}: {why}", at + 1))? else { continue };
        if wanted.is_none_or(|alg| alg == key.algorithm()) {
            keys.push(key);
        }
    }
    bounded(keys)
}

fn of_entry(entry: Entry) -> Result<Option<Key>, String> {
    let part = |name: &str, text: &Option<String>| {
        let text = text.as_ref().ok_or_else(|| format!("it has no {name}"))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("its {name} is not base64url"))
    };
    let kid = entry.kid.clone();
    match (entry.kty.as_str(), entry.crv.as_deref()) {
        ("oct", _) => of_secret(kid, &part("k", &entry.k)?).map(Some),
        ("RSA", _) => {
            let der = rsa_der(&part("n", &entry.n)?, &part("e", &entry.e)?);
            Ok(Some(Key::new(kid, Material::Rsa(der.clone()), &der)))
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (part("x", &entry.x)?, part("y", &entry.y)?);
            if (x.len(), y.len()) != (32, 32) {
                return Err("its point is not of P-256".to_owned());
            }
            let point = [&[4][..], &x, &y].concat();
            Ok(Some(Key::new(kid, Material::P256(point.clone()), &point)))
        }
        ("OKP", Some("Ed25519")) => {
            let x = part("x", &entry.x)?;
            Ok(Some(Key::new(kid, Material::Ed25519(x.clone()), &x)))
        }
        _ => Ok(None),
    }
}

/// RSAPublicKey (RFC 8017 appendix A.1.1).
fn rsa_der(n: &[u8], e: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| {
        let bytes: Vec<u8> = bytes.iter().copied().skip_while(|b| *b == 0).collect();
        let sign: &[u8] = if bytes.first().is_none_or(|b| *b >= 0x80) { &[0] } else { &[] };
        wrap(INTEGER, &[sign, &bytes].concat())
    };
    wrap(SEQUENCE, &[number(n), number(e)].concat())
}

fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    match content.len() {
        n @ 0..=0x7F => [&[tag, n as u8], content].concat(),
        _ => [&[tag, 0x82, len[0], len[1]], content].concat(),
    }
}
