//! What is wrong with a certificate is found before the first connection, where the file has a name.

use crate::clock::Time;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::Validity;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// A file of this node cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file is not the certificate or key that its option asks for.
    #[error("{file} ({option}) cannot be used: {what}")]
    Unusable {
        /// The file.
        file: String,
        /// The option that names it.
        option: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The certificate in the file has expired.
    #[error(
        "the certificate in {file} ({option}) expired on {when}: replace it by a new one and restart this node"
    )]
    Expired {
        /// The file.
        file: String,
        /// The option that names it.
        option: &'static str,
        /// When.
        when: String,
    },
}

impl CertificateError {
    /// A file that is not what it should be.
    pub fn unusable(file: &str, option: &'static str, what: impl Into<String>) -> CertificateError {
        CertificateError::Unusable { file: file.to_owned(), option, what: what.into() }
    }
}

/// All certificates of a PEM file must be readable; the first must be valid at `now`.
///
/// # Errors
/// The file, and what is wrong with it.
pub fn check(file: &str, pem: &[u8], option: &'static str, now: Time) -> Result<(), CertificateError> {
    let unusable = |what: String| CertificateError::unusable(file, option, what);
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|e| unusable(format!("it is not PEM: {e:?}")))?;
    let first = certificates.first().ok_or_else(|| unusable("there is no certificate in it".to_owned()))?;
    validity(first, now).map_err(|invalid| match invalid {
        Invalid::Unreadable(_) => unusable("its certificate is not X.509".to_owned()),
        Invalid::Expired(when) => CertificateError::Expired { file: file.to_owned(), option, when },
        Invalid::Early(from) => {
            unusable(format!("its certificate is valid only from {from} on: check this machine's clock"))
        }
    })
}

/// Why a certificate cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// The bytes are not those of an X.509 certificate.
    Unreadable(String),
    /// When the certificate expired, for people.
    Expired(String),
    /// From when on the certificate is valid, for people.
    Early(String),
}

/// Whether a certificate is valid at `now`: from the first to the last second that it names, both included (RFC 5280 section 4.1.2.5).
///
/// # Errors
/// Why it is not.
pub(super) fn validity(certificate: &[u8], now: Time) -> Result<(), Invalid> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| Invalid::Unreadable(e.to_string()))?;
    let Validity { not_before, not_after } = parsed.validity();
    let now_s = i64::try_from(now.as_millis() / 1000).unwrap_or(i64::MAX);
    if not_after.timestamp() < now_s {
        return Err(Invalid::Expired(shown(not_after)));
    }
    if not_before.timestamp() > now_s {
        return Err(Invalid::Early(shown(not_before)));
    }
    Ok(())
}

/// There must be a private key in a PEM file.
///
/// # Errors
/// There is none.
pub fn check_key(file: &str, pem: &[u8], option: &'static str) -> Result<(), CertificateError> {
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(_) => Ok(()),
        Err(_) => Err(CertificateError::unusable(file, option, "there is no private key in it")),
    }
}

/// A moment of a certificate as it is shown to people.
fn shown(moment: &ASN1Time) -> String {
    let at = moment.to_datetime();
    let (hour, minute, second) = at.to_hms();
    let (year, month, day) = at.to_calendar_date();
    format!("{year:04}-{:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERT: &str = "cluster.tls.cert_file";

    fn made(from: (i32, u8, u8), until: (i32, u8, u8)) -> rcgen::Certificate {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_certificate_is_good_from_its_first_second_to_its_last() {
        // 2024-02-29 00:00:00 UTC, and the first day of 2050, whose year is written with four digits.
        let (from, until) = (1_709_164_800_u64, 2_524_608_000_u64);
        let pem = made((2024, 2, 29), (2050, 1, 1)).pem();
        let at = |second: u64| check("node.pem", pem.as_bytes(), CERT, Time(0).plus_secs(second));
        assert!(matches!(&at(from - 1), Err(CertificateError::Unusable { what, .. })
            if what == "its certificate is valid only from 2024-02-29 00:00:00 UTC on: check this machine's clock"));
        for second in [from, until - 1, until] {
            at(second).unwrap();
        }
        assert_eq!(
            at(until + 1).unwrap_err().to_string(),
            "the certificate in node.pem (cluster.tls.cert_file) expired on 2050-01-01 00:00:00 UTC: replace it by a new one \
             and restart this node"
        );
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_the_file_s_name() {
        let der = made((2024, 1, 1), (2050, 1, 1)).der().to_vec();
        for cut in 0..der.len() {
            let pem = pem(&der[..cut]);
            let refused = check("node.pem", pem.as_bytes(), CERT, Time(1_800_000_000_000)).unwrap_err();
            assert!(
                refused.to_string().starts_with("node.pem (cluster.tls.cert_file) cannot be used: "),
                "{cut}: {refused}"
            );
        }
        let refused = check("node.pem", b"", CERT, Time(0)).unwrap_err().to_string();
        assert!(refused.contains("there is no certificate in it"), "{refused}");
        assert!(
            check_key("node.key", b"", CERT)
                .unwrap_err()
                .to_string()
                .contains("there is no private key in it")
        );
    }

    /// The bytes as a PEM certificate.
    fn pem(der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }
}
