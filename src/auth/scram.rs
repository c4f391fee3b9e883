//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as enhanced authentication of MQTT 5: the client proves that it knows the password, the server that
//! it knows the user, and neither tells the password. Channel binding is not offered.

use super::method::Refusal;
use super::password::scram::{ScramKeys, hmac_sha256, sha256};
use super::password::{Passwords, account};
use crate::mqtt::Reason;
use crate::ports::{Account, AuthStep, EnhancedAuth};
use crate::telemetry::metrics::AuthDecision;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Its name in CONNECT and AUTH.
pub const METHOD: &str = "SCRAM-SHA-256";

/// Bytes of the server's part of the nonce.
const NONCE_BYTES: usize = 18;

/// Bytes of one message of a client, at most.
pub const SCRAM_MESSAGE_MAX: usize = 4_096;

/// Told of each outcome: what the log says of a refusal, and that somebody was let in.
pub type Told = Box<dyn Fn(Result<(), &Refusal>) -> Reason + Send>;

/// What comes next.
enum State {
    /// The client's first message.
    First,
    /// The client's proof.
    Proof(Box<Proof>),
    Over,
}

struct Proof {
    /// Both first messages, as the signatures cover them.
    begun: String,
    /// The header of channel binding, as the proof must repeat it.
    binding: String,
    nonce: String,
    keys: ScramKeys,
    /// Whose keys they are; `None` = nobody's, and the proof is wrong whatever it is.
    account: Option<Account>,
}

/// One exchange.
pub struct Exchange {
    passwords: Arc<Passwords>,
    told: Told,
    /// For the salts of users that nobody knows, if there is no user at all: always the same for a name, and known to nobody.
    decoys: [u8; 32],
    nonce: String,
    state: State,
}

impl Exchange {
    /// Begins.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn new(passwords: Arc<Passwords>, decoys: [u8; 32], told: Told) -> Result<Exchange, Reason> {
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Reason::UnspecifiedError)?;
        Ok(Exchange { passwords, told, decoys, nonce: STANDARD.encode(nonce), state: State::First })
    }

    fn first(&self, message: &str) -> Result<Proof, Refusal> {
        let malformed = || invalid("its first message of SCRAM cannot be read");
        let (binding, bare) = match message.strip_prefix("n,").or_else(|| message.strip_prefix("y,")) {
            Some(rest) => {
                let bare =
                    rest.strip_prefix(',').ok_or_else(|| invalid("it asks to act for another user"))?;
                (&message[..message.len() - bare.len()], bare)
            }
            None if message.starts_with("p=") => return Err(invalid("it asks for channel binding")),
            None => return Err(malformed()),
        };
        let mut parts = bare.split(',');
        let name =
            parts.next().and_then(|p| p.strip_prefix("n=")).and_then(unescaped).ok_or_else(malformed)?;
        let client = parts.next().and_then(|p| p.strip_prefix("r=")).filter(|r| !r.is_empty());
        let client = client.ok_or_else(malformed)?;
        let known = self.passwords.find(&name)?;
        let (keys, account) =
            match known.and_then(|(name, user)| Some((user.scram.clone()?, account(&name, &user)))) {
                Some((keys, account)) => (keys, Some(account)),
                None => (decoy(self.passwords.secret().as_ref().unwrap_or(&self.decoys), &name), None),
            };
        let nonce = format!("{client}{}", self.nonce);
        let begun = format!("{bare},{}", server_first(&nonce, &keys));
        Ok(Proof { begun, binding: STANDARD.encode(binding), nonce, keys, account })
    }
}

/// Keys of a user that has none: like those that `berth passwd` makes, with a salt that stays the same.
fn decoy(secret: &[u8], name: &str) -> ScramKeys {
    let salt = hmac_sha256(secret, &[b"salt", name.as_bytes()]);
    let key = hmac_sha256(secret, &[b"key", name.as_bytes()]);
    ScramKeys::decoy(salt.get(..16).unwrap_or_default(), key)
}

fn invalid(why: &str) -> Refusal {
    Refusal::new(AuthDecision::InvalidProof, why)
}

fn server_first(nonce: &str, keys: &ScramKeys) -> String {
    format!("r={nonce},s={},i={}", STANDARD.encode(&keys.salt), keys.iterations)
}

/// A name in which `=2C` stands for a comma and `=3D` for an equals sign.
fn unescaped(name: &str) -> Option<String> {
    let mut out = String::new();
    let mut parts = name.split('=');
    out.push_str(parts.next()?);
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        out.push(match code {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        out.push_str(rest);
    }
    (!out.is_empty()).then_some(out)
}

impl Proof {
    /// Checks the client's proof; what the server answers to prove itself.
    fn check(self, message: &str) -> Result<(String, Account), Refusal> {
        let malformed = || invalid("its proof of SCRAM cannot be read");
        let (without, proof) = message.rsplit_once(",p=").ok_or_else(malformed)?;
        let proof = STANDARD.decode(proof).map_err(|_| malformed())?;
        let mut parts = without.split(',');
        if parts.next().and_then(|p| p.strip_prefix("c=")) != Some(&self.binding) {
            return Err(invalid("its channel binding is another than it began with"));
        }
        if parts.next().and_then(|p| p.strip_prefix("r=")) != Some(&self.nonce) {
            return Err(invalid("its nonce is not that of the exchange"));
        }
        let signed = format!("{},{without}", self.begun);
        let signature = hmac_sha256(&self.keys.stored, &[signed.as_bytes()]);
        let client: Vec<u8> = proof.iter().zip(signature).map(|(p, s)| p ^ s).collect();
        let right = proof.len() == signature.len() && bool::from(sha256(&client).ct_eq(&self.keys.stored));
        match self.account {
            Some(account) if right => {
                let server = hmac_sha256(&self.keys.server, &[signed.as_bytes()]);
                Ok((format!("v={}", STANDARD.encode(server)), account))
            }
            Some(account) => {
                let name = account.user.as_deref().unwrap_or_default();
                let why = format!("wrong password of user {} (SCRAM)", crate::names::shown(name));
                Err(Refusal::new(AuthDecision::WrongPassword, why))
            }
            None => Err(Refusal::new(
                AuthDecision::UnknownUser,
                "its user is not known, or has no keys for SCRAM",
            )),
        }
    }
}

impl EnhancedAuth for Exchange {
    fn step(&mut self, data: Option<&[u8]>) -> AuthStep {
        let state = std::mem::replace(&mut self.state, State::Over);
        let text = match data.unwrap_or_default() {
            bytes if bytes.len() > SCRAM_MESSAGE_MAX => Err(invalid("its message of SCRAM is too long")),
            bytes => std::str::from_utf8(bytes).map_err(|_| invalid("its message of SCRAM is no text")),
        };
        let outcome = text.and_then(|text| match state {
            // It names the method and waits for the server: RFC 5802 has the client begin.
            State::First if text.is_empty() => {
                self.state = State::First;
                Ok(AuthStep::Continue(Vec::new()))
            }
            State::First => {
                let proof = self.first(text)?;
                let answer = server_first(&proof.nonce, &proof.keys).into_bytes();
                self.state = State::Proof(Box::new(proof));
                Ok(AuthStep::Continue(answer))
            }
            State::Proof(proof) => {
                let (answer, account) = proof.check(text)?;
                (self.told)(Ok(()));
                Ok(AuthStep::Accept(answer.into_bytes(), Arc::new(account)))
            }
            State::Over => Err(invalid("its exchange of SCRAM is over")),
        });
        outcome.unwrap_or_else(|refusal| AuthStep::Refuse((self.told)(Err(&refusal))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::password::{Checker, pool::PoolLimits};
    use super::*;
    use crate::telemetry::Metrics;
    use std::os::unix::fs::PermissionsExt;

    const HASH: &str = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

    fn passwords() -> Arc<Passwords> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let keys = ScramKeys::of(b"pencil", &salt, 4096);
        std::fs::write(&path, format!("user:{HASH}:scram-sha-256={keys}\nplain:{HASH}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let limits = PoolLimits { parallel: 1, queue: 1, queue_per_address: 1 };
        let checker = Checker::start(limits, Arc::new(Metrics::new())).unwrap();
        Arc::new(Passwords::open(&path, Arc::new(checker)).unwrap())
    }

    fn exchange() -> Exchange {
        let told = |outcome: Result<(), &Refusal>| outcome.map_or_else(Refusal::reason, |()| Reason::Success);
        let mut exchange = Exchange::new(passwords(), [7; 32], Box::new(told)).unwrap();
        exchange.nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned();
        exchange
    }

    fn go_on(step: AuthStep) -> String {
        match step {
            AuthStep::Continue(data) => String::from_utf8(data).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const PROOF: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    /// The exchange of RFC 7677 section 3.
    #[test]
    fn the_exchange_of_the_rfc() {
        let mut exchange = exchange();
        assert_eq!(go_on(exchange.step(None)), "", "the client is to begin");
        let first = go_on(exchange.step(Some(FIRST.as_bytes())));
        assert_eq!(
            first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        match exchange.step(Some(PROOF.as_bytes())) {
            AuthStep::Accept(data, account) => {
                assert_eq!(data, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
                assert_eq!(account.user.as_deref(), Some("user"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(exchange.step(Some(PROOF.as_bytes())), AuthStep::Refuse(_)), "it is over");
    }

    #[test]
    fn what_is_wrong_is_refused_the_same_for_users_that_are_known_and_not() {
        for first in [
            "p=tls-unique,,n=user,r=x",
            "n,a=admin,n=user,r=x",
            "n,,n=,r=x",
            "n,,n=user",
            "n,,n=us=ER,r=x",
            "x",
            "n,,m=1,n=user,r=x",
        ] {
            assert_eq!(
                exchange().step(Some(first.as_bytes())),
                AuthStep::Refuse(Reason::BadUserNameOrPassword),
                "{first}"
            );
        }
        for name in ["user", "plain", "nobody"] {
            let mut exchange = exchange();
            let answer = go_on(exchange.step(Some(format!("n,,n={name},r=rOprNGfwEbeRWgbNEkqO").as_bytes())));
            assert!(answer.contains(",s=") && answer.contains(",i="), "{answer}");
            let wrong = PROOF.replace("p=dHzb", "p=dHzc");
            assert_eq!(
                exchange.step(Some(wrong.as_bytes())),
                AuthStep::Refuse(Reason::BadUserNameOrPassword),
                "{name}"
            );
        }
        for proof in [
            PROOF.replace("c=biws", "c=eSws"),
            PROOF.replace(",r=r", ",r=x"),
            "p=x".to_owned(),
            String::new(),
        ] {
            let mut exchange = exchange();
            go_on(exchange.step(Some(FIRST.as_bytes())));
            assert!(matches!(exchange.step(Some(proof.as_bytes())), AuthStep::Refuse(_)), "{proof}");
        }
        let salt = |name: &str| go_on(exchange().step(Some(format!("n,,n={name},r=x").as_bytes())));
        assert_eq!(salt("nobody"), salt("nobody"), "a salt that changes would tell");
        // Nor does another process with the same file, here or on another node, tell who is known.
        let mut elsewhere = exchange();
        elsewhere.decoys = [8; 32];
        assert_eq!(go_on(elsewhere.step(Some(b"n,,n=nobody,r=x"))), salt("nobody"));
        assert_eq!(unescaped("a=2Cb=3Dc").as_deref(), Some("a,b=c"));
    }
}
