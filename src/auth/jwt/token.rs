//! One token: JWS in its compact form (RFC 7515) with the claims of RFC 7519.

use super::keys::Key;
use crate::auth::password::users::{is_foreign_name, is_name};
use crate::clock::Time;
use crate::ports::AccessClaims;
use crate::topic::Filter;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Groups and filters in one token, at most, of each kind.
pub const TOKEN_LIST_MAX: usize = 1_000;

/// What tokens must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The claim with the user's name.
    pub user_claim: String,
    /// Whom it must be for.
    pub audience: Option<String>,
    /// Who must have issued it.
    pub issuer: Option<String>,
    /// By how much clocks may differ, milliseconds.
    pub skew_ms: u64,
}

/// What a valid token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The user.
    pub user: Arc<str>,
    /// Groups that the user is in.
    pub groups: Vec<Arc<str>>,
    /// What it may do.
    pub claims: Option<AccessClaims>,
    /// Until when it is accepted.
    pub expires_at: Time,
    /// The version of the key that signed it.
    pub key: u64,
}

/// The parts of what looks like a token.
pub struct Parts<'a> {
    header: Map<String, Value>,
    signed: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

fn object(part: &str) -> Option<Map<String, Value>> {
    match serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()? {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

impl<'a> Parts<'a> {
    /// Takes a text apart; `None` if it is no token at all.
    pub fn of(text: &'a str) -> Option<Parts<'a>> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        if payload.contains('.') {
            return None;
        }
        let header = object(header).filter(|h| h.contains_key("alg"))?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        Some(Parts { header, signed, payload, signature })
    }

    /// Whether a token is signed by one of `keys`, valid `now`, and as expected.
    ///
    /// # Errors
    /// Why not, for the log: nothing of the token.
    pub fn verify(&self, keys: &[Key], expected: &Expected, now: Time) -> Result<Token, String> {
        let key = self.key(keys)?;
        let claims = object(self.payload).ok_or("its claims cannot be read")?;
        let expires_at = self.times(&claims, expected, now)?;
        if let Some(issuer) = &expected.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err("it is of another issuer (auth.jwt.issuer)".to_owned());
        }
        if let Some(audience) = &expected.audience
            && !lists(claims.get("aud"), audience)
        {
            return Err("it is for another audience (auth.jwt.audience)".to_owned());
        }
        let name = &expected.user_claim;
        let user = claims.get(name).and_then(Value::as_str).filter(|user| is_foreign_name(user));
        let user = user.ok_or_else(|| format!("its claim {name} (auth.jwt.user_claim) is no user's name"))?;
        let groups = strings(claims.get("groups"), "groups")?.unwrap_or_default();
        if !groups.iter().all(|g| is_name(g)) {
            return Err("its claim groups has a name that is none".to_owned());
        }
        let access = match claims.get("acl") {
            None => None,
            Some(Value::Object(acl)) => Some(AccessClaims {
                publish: filters(acl.get("publish"), "acl.publish")?,
                subscribe: filters(acl.get("subscribe"), "acl.subscribe")?,
            }),
            Some(_) => return Err("its claim acl is no object".to_owned()),
        };
        Ok(Token { user: user.into(), groups, claims: access, expires_at, key: key.version })
    }

    /// The key that signed it.
    fn key<'k>(&self, keys: &'k [Key]) -> Result<&'k Key, String> {
        if self.header.contains_key("crit") {
            return Err("it asks for an extension that is not known (crit)".to_owned());
        }
        let algorithm = self.header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let kid = self.header.get("kid").and_then(Value::as_str);
        // A key without a name may be any, one with a name only that.
        let mut named =
            keys.iter().filter(|k| kid.is_none() || k.kid.is_none() || k.kid.as_deref() == kid).peekable();
        if named.peek().is_none() {
            return Err("no key has the name that it gives (kid)".to_owned());
        }
        let mut fitting = named.filter(|k| k.algorithm() == algorithm).peekable();
        if fitting.peek().is_none() {
            return Err("its algorithm is not that of the key".to_owned());
        }
        let signed = fitting.find(|k| k.verifies(self.signed.as_bytes(), &self.signature));
        signed.ok_or_else(|| "its signature is wrong".to_owned())
    }

    /// Until when it is accepted, if it is now.
    fn times(&self, claims: &Map<String, Value>, expected: &Expected, now: Time) -> Result<Time, String> {
        let exp = moment(claims, "exp")?.ok_or("it does not expire (no exp)")?.plus_ms(expected.skew_ms);
        if exp <= now {
            return Err("it has expired".to_owned());
        }
        match moment(claims, "nbf")? {
            Some(nbf) if now.plus_ms(expected.skew_ms) < nbf => Err("it is not valid yet (nbf)".to_owned()),
            _ => Ok(exp),
        }
    }
}

/// A NumericDate (RFC 7519 section 2).
fn moment(claims: &Map<String, Value>, name: &str) -> Result<Option<Time>, String> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    match value.as_f64() {
        // Beyond it nothing expires in anybody's time.
        Some(seconds) if (0.0..=1e12).contains(&seconds) => Ok(Some(Time((seconds * 1000.0) as u64))),
        _ => Err(format!("its claim {name} is no time")),
    }
}

/// Whether a claim is `wanted`, or a list with it.
fn lists(claim: Option<&Value>, wanted: &str) -> bool {
    match claim {
        Some(Value::String(one)) => one == wanted,
        Some(Value::Array(all)) => all.iter().any(|v| v.as_str() == Some(wanted)),
        _ => false,
    }
}

/// Topic filters: one that is none could match more than its author thinks.
fn filters(claim: Option<&Value>, name: &str) -> Result<Option<Vec<Arc<str>>>, String> {
    let found = strings(claim, name)?;
    if found.iter().flatten().any(|filter| Filter::parse(filter).is_err()) {
        return Err(format!("its claim {name} has an entry that is no topic filter"));
    }
    Ok(found)
}

fn strings(claim: Option<&Value>, name: &str) -> Result<Option<Vec<Arc<str>>>, String> {
    let Some(claim) = claim else { return Ok(None) };
    let list = claim.as_array().ok_or_else(|| format!("its claim {name} is no list"))?;
    if list.len() > TOKEN_LIST_MAX {
        return Err(format!("its claim {name} has more than {TOKEN_LIST_MAX} entries"));
    }
    let texts: Option<Vec<Arc<str>>> = list.iter().map(|v| v.as_str().map(Arc::from)).collect();
    texts.map(Some).ok_or_else(|| format!("its claim {name} has an entry that is no text"))
}
