//! Tokens (JSON Web Tokens) in place of passwords.

pub mod keys;
pub mod token;

use super::method::{Checked, Method, Prepared, Refusal, Request};
use crate::clock;
use crate::config::{AuthJwt, TokenPlace};
use crate::ports::{Account, AccountMark};
use crate::readings::Readings;
use crate::secret_file::{FileError, Privacy, WatchedFile};
use crate::telemetry::metrics::AuthDecision;
use futures_util::future::BoxFuture;
use keys::Key;
use parking_lot::RwLock;
use std::sync::Arc;
use token::{Expected, Parts};

/// Marks accounts of this method.
pub(super) const SOURCE: u32 = 2;

/// Reads the keys in the content of a file.
type ReadKeys = fn(&[u8]) -> Result<Vec<Key>, String>;

/// Knows whoever shows a valid token.
pub struct Tokens {
    place: TokenPlace,
    expected: Expected,
    files: Vec<(WatchedFile, ReadKeys)>,
    readings: Readings,
    keys: RwLock<Arc<[Key]>>,
}

impl Tokens {
    /// Reads the keys.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn open(jwt: &AuthJwt) -> Result<Tokens, FileError> {
        let mut files: Vec<(WatchedFile, ReadKeys)> = Vec::new();
        if let Some(path) = &jwt.key_file {
            let privacy = Privacy::If(keys::is_secret);
            files.push((WatchedFile::new("auth.jwt.key_file", path, privacy), keys::of_key_file));
        }
        if let Some(path) = &jwt.jwks_file {
            let privacy = Privacy::If(keys::has_secret);
            files.push((WatchedFile::new("auth.jwt.jwks_file", path, privacy), keys::of_set));
        }
        let some = |text: &String| Some(text.clone()).filter(|t| !t.is_empty());
        let expected = Expected {
            user_claim: jwt.user_claim.clone(),
            audience: some(&jwt.audience),
            issuer: some(&jwt.issuer),
            skew_ms: u64::try_from(jwt.skew.as_millis()).unwrap_or(u64::MAX),
        };
        let (readings, keys) = (Readings::default(), RwLock::new(Arc::from([])));
        let tokens = Tokens { place: jwt.from, expected, files, readings, keys };
        match tokens.read(true) {
            Ok(keys) => *tokens.keys.write() = keys,
            Err(wrong) => wrong.into_iter().next().map_or(Ok(()), Err)?,
        }
        Ok(tokens)
    }

    fn read(&self, note: bool) -> Result<Arc<[Key]>, Vec<FileError>> {
        let (mut keys, mut wrong) = (Vec::new(), Vec::new());
        for (file, read) in &self.files {
            let bytes = if note { file.read() } else { file.peek() };
            match bytes.and_then(|bytes| read(&bytes).map_err(|why| file.content(why))) {
                Ok(more) => keys.extend(more),
                Err(error) => wrong.push(error),
            }
        }
        if wrong.is_empty() { Ok(keys.into()) } else { Err(wrong) }
    }

    fn judge(&self, request: &Request) -> Checked {
        let text = match self.place {
            TokenPlace::Password => request.password.as_ref().and_then(|p| std::str::from_utf8(p).ok()),
            TokenPlace::Username => request.username.as_ref().map(|name| name.as_str()),
        };
        let Some(parts) = text.and_then(Parts::of) else { return Checked::NotMine };
        let keys = self.keys.read().clone();
        match parts.verify(&keys, &self.expected, clock::now()) {
            Ok(token) => Checked::Accept(Account {
                user: Some(token.user),
                groups: token.groups.into(),
                claims: token.claims.map(Box::new),
                expires_at: Some(token.expires_at),
                mark: AccountMark { source: SOURCE, version: token.key },
            }),
            Err(why) => Checked::Refuse(Refusal::new(
                AuthDecision::InvalidProof,
                format!("its token is refused: {why}"),
            )),
        }
    }
}

impl Method for Tokens {
    fn name(&self) -> &'static str {
        "jwt"
    }

    fn check<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Checked> {
        Box::pin(std::future::ready(self.judge(request)))
    }

    fn files(&self) -> Vec<&WatchedFile> {
        self.files.iter().map(|(file, _)| file).collect()
    }

    fn prepare(self: Arc<Self>, note: bool) -> Option<Result<Prepared, Vec<FileError>>> {
        Some(self.readings.read(|| self.read(note)).map(|keys| -> Prepared {
            Box::new(move || {
                self.readings.put(keys, |keys| *self.keys.write() = keys);
                format!("{} keys of tokens", self.keys.read().len())
            })
        }))
    }

    /// A token counts for as long as its key does.
    fn holds(&self, _: &Account, version: u64) -> bool {
        self.keys.read().iter().any(|key| key.version == version)
    }
}

#[cfg(test)]
mod tests;
