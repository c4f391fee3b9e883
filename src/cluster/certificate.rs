//! What is wrong with a certificate is found before the first connection, where the file has a name.

use crate::clock::Time;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A file of this node cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertificateError {
    /// It is not what it should be.
    #[error("{file} ({option}) cannot be used: {what}")]
    Unusable {
        /// The file.
        file: String,
        /// The option that names it.
        option: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// It has expired.
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
    let (from, until) = validity(first).ok_or_else(|| unusable("its certificate is not X.509".to_owned()))?;
    let now_s = now.as_millis() / 1000;
    if until.seconds < now_s {
        return Err(CertificateError::Expired { file: file.to_owned(), option, when: until.text });
    }
    if from.seconds > now_s {
        let from = from.text;
        return Err(unusable(format!(
            "its certificate is valid only from {from} on: check this machine's clock"
        )));
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

/// A moment as a certificate gives it.
#[derive(Debug, PartialEq, Eq)]
struct Moment {
    seconds: u64,
    text: String,
}

/// From when until when a certificate is valid (RFC 5280 section 4.1).
fn validity(certificate: &[u8]) -> Option<(Moment, Moment)> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    // An optional version comes before serial number, algorithm and issuer.
    if rest.first() == Some(&0xa0) {
        rest = element(rest)?.2;
    }
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, validity, _) = element(rest)?;
    let (tag, from, rest) = element(validity)?;
    let from = moment(tag, from)?;
    let (tag, until, _) = element(rest)?;
    Some((from, moment(tag, until)?))
}

/// Takes one element off DER: its tag, its content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |len, b| len << 8 | usize::from(*b)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

/// UTCTime `YYMMDDhhmmssZ` or GeneralizedTime `YYYYMMDDhhmmssZ`.
fn moment(tag: u8, text: &[u8]) -> Option<Moment> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let (year, rest): (u64, _) = match (tag, text.len()) {
        (0x17, 12) if digits => {
            let year: u64 = text[..2].parse().ok()?;
            (year + if year < 50 { 2000 } else { 1900 }, &text[2..])
        }
        (0x18, 14) if digits => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let two = |at: usize| rest[at..at + 2].parse::<u64>().ok();
    let (month, day, hour, minute, second) = (two(0)?, two(2)?, two(4)?, two(6)?, two(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days_since_1970(year, month, day)?;
    let text = format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC");
    Some(Moment { seconds: days * 86_400 + hour * 3600 + minute * 60 + second, text })
}

/// Days from 1970-01-01 to a day of the Gregorian calendar; 0 for earlier ones.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years begin in March here, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    Some(days.saturating_sub(719_468))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_certificates() {
        let seconds = |tag, text: &str| moment(tag, text.as_bytes()).map(|m| m.seconds);
        assert_eq!(seconds(0x17, "700101000000Z"), Some(0));
        assert_eq!(seconds(0x17, "240229235959Z"), Some(1_709_251_199));
        assert_eq!(seconds(0x18, "20380119031408Z"), Some(2_147_483_648));
        assert_eq!(seconds(0x18, "99991231235959Z"), Some(253_402_300_799));
        assert_eq!(moment(0x17, b"240229235959Z").unwrap().text, "2024-02-29 23:59:59 UTC");
        for bad in ["", "Z", "2402292359Z", "24022923595xZ", "241329235959Z"] {
            assert_eq!(seconds(0x17, bad), None, "{bad}");
        }
    }

    #[test]
    fn the_validity_of_a_certificate() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (from, until) = validity(made.cert.der()).unwrap();
        assert_eq!((&*from.text, &*until.text), ("1975-01-01 00:00:00 UTC", "4096-01-01 00:00:00 UTC"));
        let der = made.cert.der();
        for cut in 0..der.len() {
            assert_eq!(validity(&der[..cut]), None, "{cut}");
        }
    }
}
