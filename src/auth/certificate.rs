//! Certificates that clients show: the handshake has verified them, so that a name in one is its owner's.

use super::method::{Checked, Method, Refusal, Request};
use super::password::users::is_foreign_name;
use crate::config::CertificateName;
use crate::ports::{Account, AccountMark, CertificateNames};
use crate::telemetry::metrics::AuthDecision;
use futures_util::future::BoxFuture;

/// Marks accounts of this method.
pub(super) const SOURCE: u32 = 3;

/// Knows whoever shows a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Certificates(CertificateName);

impl Certificates {
    /// Goes by this name.
    pub fn new(name: CertificateName) -> Certificates {
        Certificates(name)
    }

    fn name_in<'a>(&self, names: &'a CertificateNames) -> Option<&'a str> {
        match self.0 {
            CertificateName::Off => None,
            CertificateName::CommonName => names.common_name.as_deref(),
            CertificateName::Dns => names.dns.first().map(String::as_str),
            CertificateName::Uri => names.uri.first().map(String::as_str),
            CertificateName::Subject => Some(&names.subject),
        }
    }

    fn judge(&self, request: &Request) -> Checked {
        let Some(names) = &request.door.certificate else { return Checked::NotMine };
        // A certificate without such a name may be for something else.
        let Some(name) = self.name_in(names) else { return Checked::NotMine };
        if !is_foreign_name(name) {
            let why = "its certificate has a name that cannot be a user's (auth.certificate.name)";
            return Checked::Refuse(Refusal::new(AuthDecision::InvalidProof, why));
        }
        Checked::Accept(Account {
            user: Some(name.into()),
            mark: AccountMark { source: SOURCE, version: 0 },
            ..Account::default()
        })
    }
}

impl Method for Certificates {
    fn name(&self) -> &'static str {
        "certificate"
    }

    fn check<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Checked> {
        Box::pin(std::future::ready(self.judge(request)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::Version;
    use crate::ports::Door;
    use std::sync::Arc;

    fn request(certificate: Option<CertificateNames>) -> Request {
        let door = Door {
            certificate: certificate.map(Box::new),
            ..(*Door::tcp("192.0.2.1:5".parse().unwrap())).clone()
        };
        Request {
            version: Version::V5,
            client_id: "c".into(),
            username: None,
            password: None,
            door: Arc::new(door),
        }
    }

    #[test]
    fn the_name_that_is_asked_for_is_the_user() {
        let names = CertificateNames {
            subject: "CN=sensor-7,O=Example".to_owned(),
            common_name: Some("sensor-7".to_owned()),
            dns: vec!["a.example".to_owned(), "b.example".to_owned()],
            uri: vec!["spiffe://example/sensor".to_owned()],
        };
        for (by, user) in [
            (CertificateName::CommonName, Some("sensor-7")),
            (CertificateName::Dns, Some("a.example")),
            (CertificateName::Uri, Some("spiffe://example/sensor")),
            (CertificateName::Subject, Some("CN=sensor-7,O=Example")),
            (CertificateName::Off, None),
        ] {
            let found = match Certificates::new(by).judge(&request(Some(names.clone()))) {
                Checked::Accept(account) => account.user,
                other => {
                    assert_eq!(other, Checked::NotMine);
                    None
                }
            };
            assert_eq!(found.as_deref(), user, "{by:?}");
            assert_eq!(Certificates::new(by).judge(&request(None)), Checked::NotMine);
            let empty = Certificates::new(by).judge(&request(Some(CertificateNames::default())));
            assert!(!matches!(empty, Checked::Accept(_)), "{by:?}: {empty:?}");
        }
        let odd = CertificateNames { common_name: Some("a\nb".to_owned()), ..names };
        assert!(matches!(
            Certificates::new(CertificateName::CommonName).judge(&request(Some(odd))),
            Checked::Refuse(_)
        ));
    }
}
