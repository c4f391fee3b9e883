//! Password hashes: argon2id in PHC strings, and those that mosquitto_passwd writes.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, pbkdf2};
use std::num::NonZeroU32;
use subtle::ConstantTimeEq;

/// Memory that one check of an argon2id hash may take, KiB.
pub const HASH_MEMORY_MAX: u32 = 262_144;

/// Passes that an argon2id hash may ask for.
pub const HASH_PASSES_MAX: u32 = 64;

/// Iterations that a PBKDF2 hash may ask for.
pub const HASH_ITERATIONS_MAX: u32 = 10_000_000;

/// Memory, passes and lanes of new hashes (OWASP: 19 MiB, 2, 1).
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// Base64 as PHC strings (without padding) and mosquitto (with it) have it.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The hash of a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Hash {
    /// `$argon2id$v=19$m=…,t=…,p=…$salt$hash`
    Argon2id {
        /// Memory in KiB, passes, lanes.
        cost: (u32, u32, u32),
        /// The salt.
        salt: Box<[u8]>,
        /// The hash.
        hash: Box<[u8]>,
    },
    /// mosquitto's `$7$iterations$salt$hash`: PBKDF2 with HMAC-SHA-512.
    Pbkdf2 {
        /// Iterations.
        iterations: NonZeroU32,
        /// The salt.
        salt: Box<[u8]>,
        /// The hash.
        hash: Box<[u8]>,
    },
    /// mosquitto's `$6$salt$hash`: SHA-512 of password and salt.
    Sha512 {
        /// The salt.
        salt: Box<[u8]>,
        /// The hash.
        hash: Box<[u8]>,
    },
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

/// What is wrong with a hash; never says what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// It is none.
    #[error(
        "the password is in plain text, or its hash is of a kind that is not known: set it with `berth passwd`"
    )]
    Unknown,
    /// The hash is cut off or has strange characters.
    #[error("the {0} hash cannot be read")]
    Malformed(&'static str),
    /// The hash costs more to check than is allowed.
    #[error("the {0} hash asks for more work than is allowed ({1})")]
    TooCostly(&'static str, &'static str),
}

fn bytes(text: &str, kind: &'static str) -> Result<Box<[u8]>, HashError> {
    let bytes = BASE64.decode(text).map_err(|_| HashError::Malformed(kind))?;
    if bytes.is_empty() { Err(HashError::Malformed(kind)) } else { Ok(bytes.into()) }
}

impl Hash {
    /// Reads a hash.
    ///
    /// # Errors
    /// If it is none that can be checked.
    pub fn parse(text: &str) -> Result<Hash, HashError> {
        let mut parts = text.split('$');
        let (Some(""), Some(kind)) = (parts.next(), parts.next()) else { return Err(HashError::Unknown) };
        let parts: Vec<&str> = parts.collect();
        match (kind, &parts[..]) {
            ("argon2id", ["v=19", cost, salt, hash]) => {
                let kind = "argon2id";
                let cost = cost_of(cost).ok_or(HashError::Malformed(kind))?;
                if cost.0 > HASH_MEMORY_MAX || cost.1 > HASH_PASSES_MAX {
                    return Err(HashError::TooCostly(kind, "256 MiB of memory, 64 passes"));
                }
                let (salt, hash) = (bytes(salt, kind)?, bytes(hash, kind)?);
                argon2id(cost, hash.len()).ok_or(HashError::Malformed(kind))?;
                if salt.len() < argon2::MIN_SALT_LEN {
                    return Err(HashError::Malformed(kind));
                }
                Ok(Hash::Argon2id { cost, salt, hash })
            }
            ("7", [iterations, salt, hash]) => {
                let kind = "PBKDF2 ($7$)";
                let iterations: NonZeroU32 = iterations.parse().map_err(|_| HashError::Malformed(kind))?;
                if iterations.get() > HASH_ITERATIONS_MAX {
                    return Err(HashError::TooCostly(kind, "10,000,000 iterations"));
                }
                Ok(Hash::Pbkdf2 { iterations, salt: bytes(salt, kind)?, hash: bytes(hash, kind)? })
            }
            ("6", [salt, hash]) => {
                let kind = "SHA-512 ($6$)";
                Ok(Hash::Sha512 { salt: bytes(salt, kind)?, hash: bytes(hash, kind)? })
            }
            ("argon2id", _) => Err(HashError::Malformed("argon2id")),
            ("7", _) => Err(HashError::Malformed("PBKDF2 ($7$)")),
            ("6", _) => Err(HashError::Malformed("SHA-512 ($6$)")),
            _ => Err(HashError::Unknown),
        }
    }

    /// Whether the hash is of this password. Takes long, by design.
    pub fn is_of(&self, password: &[u8]) -> bool {
        match self {
            Hash::Argon2id { cost, salt, hash } => {
                let mut found = vec![0; hash.len()];
                let done = argon2id(*cost, hash.len())
                    .is_some_and(|a| a.hash_password_into(password, salt, &mut found).is_ok());
                bool::from(found.ct_eq(hash)) && done
            }
            Hash::Pbkdf2 { iterations, salt, hash } => {
                pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA512, *iterations, salt, password, hash).is_ok()
            }
            Hash::Sha512 { salt, hash } => {
                let mut context = digest::Context::new(&digest::SHA512);
                context.update(password);
                context.update(salt);
                context.finish().as_ref().ct_eq(hash).into()
            }
        }
    }

    /// A new argon2id hash of a password.
    ///
    /// # Errors
    /// If the system gives no random numbers, or no memory.
    pub fn new(password: &[u8]) -> Result<Hash, String> {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).map_err(|_| "the system gives no random numbers".to_owned())?;
        let (cost, mut hash) = ((MEMORY_KIB, PASSES, LANES), [0; HASH_BYTES]);
        let argon2 = argon2id(cost, HASH_BYTES).ok_or("argon2 refuses its parameters")?;
        argon2.hash_password_into(password, &salt, &mut hash).map_err(|e| format!("argon2: {e}"))?;
        Ok(Hash::Argon2id { cost, salt: salt.into(), hash: hash.into() })
    }

    /// The kind of hash, for operators.
    pub fn kind(&self) -> &'static str {
        match self {
            Hash::Argon2id { .. } => "argon2id",
            Hash::Pbkdf2 { .. } => "pbkdf2-sha512",
            Hash::Sha512 { .. } => "sha512",
        }
    }

    /// A hash that costs as much to check, and that is of no password.
    pub fn decoy(&self) -> Hash {
        let mut decoy = self.clone();
        match &mut decoy {
            Hash::Argon2id { salt, hash, .. }
            | Hash::Pbkdf2 { salt, hash, .. }
            | Hash::Sha512 { salt, hash } => {
                salt.fill(0x5A);
                hash.fill(0);
            }
        }
        decoy
    }

    /// A decoy that costs as much to check as a new hash.
    pub fn new_decoy() -> Hash {
        let (salt, hash) = (Box::new([0x5A; SALT_BYTES]), Box::new([0; HASH_BYTES]));
        Hash::Argon2id { cost: (MEMORY_KIB, PASSES, LANES), salt, hash }
    }
}

impl std::fmt::Display for Hash {
    /// As files have it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &[u8]| BASE64.encode(bytes);
        match self {
            Hash::Argon2id { cost: (m, t, p), salt, hash } => {
                write!(f, "$argon2id$v=19$m={m},t={t},p={p}${}${}", text(salt), text(hash))
            }
            Hash::Pbkdf2 { iterations, salt, hash } => {
                write!(f, "$7${iterations}${}${}", text(salt), text(hash))
            }
            Hash::Sha512 { salt, hash } => write!(f, "$6${}${}", text(salt), text(hash)),
        }
    }
}

fn argon2id((memory, passes, lanes): (u32, u32, u32), length: usize) -> Option<Argon2<'static>> {
    let params = Params::new(memory, passes, lanes, Some(length)).ok()?;
    Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn cost_of(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split(',');
    let mut next = |name: &str| parts.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
    let cost = (next("m")?, next("t")?, next("p")?);
    parts.next().is_none().then_some(cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by the reference implementation of argon2 and by mosquitto_passwd.
    const KNOWN: &[(&str, &str)] = &[
        ("password", "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"),
        ("password", "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc"),
        (
            "correct horse",
            "$7$101$nJ6P+Xu+fe1PW2cT$qDL85/U9NZhWdwVaPmhllliGtk96y7vDZ5E6tyvnPZxXzBrHBGS36++Ao1hUhYo4dfdfJDwNLhN34bAWlwPD/g==",
        ),
        (
            "correct horse",
            "$6$kDX74rzcB+iTXPae$/rPTP6oKHIoHGau4Q/DyNd+dFpSgnAzsHWY+zsVXFz/58PNVmy5sIKcd81+PvLMf9IvV1XY0Kxw0eA1UU3VDFg==",
        ),
    ];

    #[test]
    fn hashes_of_other_programs_are_checked() {
        for (password, text) in KNOWN {
            let hash = Hash::parse(text).unwrap();
            assert!(hash.is_of(password.as_bytes()), "{text}");
            assert!(!hash.is_of(b"passwore") && !hash.is_of(b""), "{text}");
            assert!(!hash.decoy().is_of(password.as_bytes()));
            assert_eq!(Hash::parse(&hash.to_string()).unwrap(), hash);
        }
    }

    #[test]
    fn a_new_hash_is_of_its_password_only() {
        let hash = Hash::new(b"secret").unwrap();
        let read = Hash::parse(&hash.to_string()).unwrap();
        assert!(read.is_of(b"secret") && !read.is_of(b"Secret") && !read.is_of(b""));
        assert_ne!(hash.to_string(), Hash::new(b"secret").unwrap().to_string(), "salted");
        assert!(!Hash::new_decoy().is_of(b"secret"));
    }

    #[test]
    fn what_is_no_hash_is_refused_and_not_repeated() {
        for text in [
            "",
            "plain",
            "$",
            "$1$abc$def",
            "$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR",
            "$argon2id$v=16$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR",
            "$argon2id$v=19$m=256,t=2$c29tZXNhbHQ$nf65",
            "$argon2id$v=19$m=256,t=2,p=1,x=1$c29tZXNhbHQ$nf65EOgLrQMR",
            "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$",
            "$argon2id$v=19$m=4000000000,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR",
            "$argon2id$v=19$m=256,t=0,p=1$c29tZXNhbHQ$nf65EOgLrQMR",
            "$argon2id$v=19$m=256,t=2,p=1$YQ$nf65EOgLrQMR",
            "$7$0$c2FsdA==$aGFzaA==",
            "$7$101$c2FsdA==",
            "$7$x$c2FsdA==$aGFzaA==",
            "$7$4000000000$c2FsdA==$aGFzaA==",
            "$6$c2FsdA==",
            "$6$!$aGFzaA==",
        ] {
            let error = Hash::parse(text).unwrap_err().to_string();
            assert!(text.len() < 6 || !error.contains(text), "{error}");
        }
    }
}
