//! What SCRAM-SHA-256 keeps of a password (RFC 5802 section 3, RFC 7677): enough to recognise who knows it, not to pose as them.

use super::hash::BASE64;
use base64::Engine;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// Iterations of new keys.
const ITERATIONS: u32 = 10_000;

/// Fewer iterations are refused (RFC 7677 section 4).
pub const SCRAM_ITERATIONS_MIN: u32 = 4_096;

/// More iterations are refused: the client has to do them.
pub const SCRAM_ITERATIONS_MAX: u32 = 1_000_000;

const SALT_BYTES: usize = 16;
const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;

/// The keys of one password.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// Iterations that the client makes.
    pub iterations: u32,
    /// The salt that it makes them with.
    pub salt: Box<[u8]>,
    /// SHA-256 of the client's key.
    pub stored: [u8; KEY_BYTES],
    /// The server's key.
    pub server: [u8; KEY_BYTES],
}

impl std::fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScramKeys")
    }
}

/// HMAC-SHA-256.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; KEY_BYTES] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    let (mut out, tag) = ([0; KEY_BYTES], context.sign());
    out.copy_from_slice(tag.as_ref());
    out
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; KEY_BYTES] {
    let (mut out, digest) = ([0; KEY_BYTES], digest::digest(&digest::SHA256, bytes));
    out.copy_from_slice(digest.as_ref());
    out
}

impl ScramKeys {
    /// New keys of a password.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn new(password: &[u8]) -> Result<ScramKeys, String> {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).map_err(|_| "the system gives no random numbers".to_owned())?;
        Ok(ScramKeys::of(password, &salt, ITERATIONS))
    }

    /// The keys of a password with this salt.
    pub fn of(password: &[u8], salt: &[u8], iterations: u32) -> ScramKeys {
        let mut salted = Zeroizing::new([0; KEY_BYTES]);
        let rounds = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password, &mut *salted);
        let client = Zeroizing::new(hmac_sha256(&*salted, &[b"Client Key"]));
        ScramKeys {
            iterations,
            salt: salt.into(),
            stored: sha256(&*client),
            server: hmac_sha256(&*salted, &[b"Server Key"]),
        }
    }

    /// Keys that are of no password, with as many iterations as new ones.
    pub fn decoy(salt: &[u8], key: [u8; KEY_BYTES]) -> ScramKeys {
        ScramKeys { iterations: ITERATIONS, salt: salt.into(), stored: key, server: key }
    }

    /// Reads `iterations,salt,stored,server`.
    pub fn parse(text: &str) -> Option<ScramKeys> {
        let mut parts = text.split(',');
        let iterations: u32 = parts.next()?.parse().ok()?;
        let mut next = || BASE64.decode(parts.next()?).ok();
        let (salt, stored, server) = (next()?, next()?, next()?);
        let fits = (SCRAM_ITERATIONS_MIN..=SCRAM_ITERATIONS_MAX).contains(&iterations) && !salt.is_empty();
        let end = parts.next().is_none();
        (fits && end).then_some(())?;
        Some(ScramKeys {
            iterations,
            salt: salt.into(),
            stored: stored.try_into().ok()?,
            server: server.try_into().ok()?,
        })
    }
}

impl std::fmt::Display for ScramKeys {
    /// As files have it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &[u8]| BASE64.encode(bytes);
        write!(f, "{},{},{},{}", self.iterations, text(&self.salt), text(&self.stored), text(&self.server))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677 section 3.
    #[test]
    fn the_keys_are_those_of_the_rfc() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let keys = ScramKeys::of(b"pencil", &salt, 4096);
        let auth = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                    s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = hmac_sha256(&keys.stored, &[auth.as_bytes()]);
        let proof = BASE64.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        let client: Vec<u8> = proof.iter().zip(signature).map(|(p, s)| p ^ s).collect();
        assert_eq!(sha256(&client), keys.stored);
        let server = hmac_sha256(&keys.server, &[auth.as_bytes()]);
        assert_eq!(BASE64.encode(server), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4");
        assert_eq!(ScramKeys::parse(&keys.to_string()), Some(keys));
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let good = ScramKeys::of(b"x", b"salt", 4096).to_string();
        for text in
            [String::new(), "4096".into(), good.replace("4096", "1"), format!("{good},x"), good[..40].into()]
        {
            assert_eq!(ScramKeys::parse(&text), None, "{text}");
        }
    }
}
