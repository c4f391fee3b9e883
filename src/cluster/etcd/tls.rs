//! TLS to etcd: what is wrong with a certificate is found here, before the first connection, where the file has a name.

use super::error::EtcdError;
use crate::clock::Time;
use etcd_client::{Certificate, Identity, TlsOptions};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The content of a PEM file, and the file's name for messages.
#[derive(Clone)]
pub struct Pem {
    /// Where it came from.
    pub file: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the content: it may be a key.
        write!(f, "Pem({})", self.file)
    }
}

/// How etcd is trusted, and how this node shows who it is.
#[derive(Clone, Debug, Default)]
pub struct EtcdTls {
    /// The authority that signed etcd's certificates (etcd.ca_file); `None` = those the system trusts.
    pub ca: Option<Pem>,
    /// This node's certificate (etcd.cert_file) and its key (etcd.key_file).
    pub identity: Option<(Pem, Pem)>,
}

impl EtcdTls {
    /// Checks the files and makes the client's configuration of them.
    ///
    /// # Errors
    /// A file that cannot be used or has expired at `now`: which, and what to do.
    pub(super) fn options(&self, now: Time) -> Result<TlsOptions, EtcdError> {
        let mut options = TlsOptions::new();
        match &self.ca {
            Some(ca) => {
                check_certificates(ca, "etcd.ca_file", now)?;
                options = options.ca_certificate(Certificate::from_pem(&ca.bytes));
            }
            None => options = options.with_enabled_roots(),
        }
        if let Some((cert, key)) = &self.identity {
            check_certificates(cert, "etcd.cert_file", now)?;
            if PrivateKeyDer::from_pem_slice(&key.bytes).is_err() {
                let what = "there is no private key in it".to_owned();
                return Err(unusable(key, "etcd.key_file", what));
            }
            options = options.identity(Identity::from_pem(&cert.bytes, &key.bytes));
        }
        Ok(options)
    }
}

fn unusable(pem: &Pem, option: &'static str, what: String) -> EtcdError {
    EtcdError::Certificate { file: pem.file.clone(), option, what }
}

/// All certificates of the file must be readable; the first must be valid at `now`.
fn check_certificates(pem: &Pem, option: &'static str, now: Time) -> Result<(), EtcdError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.bytes).collect();
    let certificates = certificates.map_err(|e| unusable(pem, option, format!("it is not PEM: {e:?}")))?;
    let Some(first) = certificates.first() else {
        return Err(unusable(pem, option, "there is no certificate in it".to_owned()));
    };
    let Some((from, until)) = validity(first) else {
        return Err(unusable(pem, option, "its certificate is not X.509".to_owned()));
    };
    let now_s = now.as_millis() / 1000;
    if until.seconds < now_s {
        return Err(EtcdError::Expired { file: pem.file.clone(), option, when: until.text });
    }
    if from.seconds > now_s {
        let what = format!("its certificate is valid only from {} on: check this machine's clock", from.text);
        return Err(unusable(pem, option, what));
    }
    Ok(())
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
