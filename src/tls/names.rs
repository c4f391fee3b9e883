//! The names in a client's certificate.

use crate::ports::CertificateNames;
use std::fmt::Write;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

/// Names of one kind that are taken from a certificate; further ones are left out.
pub const NAMES_MAX: usize = 16;

/// Bytes of one name; longer ones are left out.
pub const NAME_BYTES_MAX: usize = 1024;

/// Attribute types with names of their own (RFC 4514 section 3).
const SHORT: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

/// The names in a certificate that was verified; `None` if it cannot be read after all.
pub fn names(certificate: &[u8]) -> Option<CertificateNames> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let fits = |name: &&str| !name.is_empty() && name.len() <= NAME_BYTES_MAX;
    let subject = parsed.subject();
    let common_name = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).filter(fits);
    let mut names = CertificateNames {
        subject: Some(rfc4514(subject)).filter(|s| fits(&&**s)).unwrap_or_default(),
        common_name: common_name.map(str::to_owned),
        ..CertificateNames::default()
    };
    if let Ok(Some(alternative)) = parsed.subject_alternative_name() {
        for name in &alternative.value.general_names {
            let (list, name) = match name {
                GeneralName::DNSName(name) => (&mut names.dns, *name),
                GeneralName::URI(name) => (&mut names.uri, *name),
                _ => continue,
            };
            if fits(&name) && list.len() < NAMES_MAX {
                list.push(name.to_owned());
            }
        }
    }
    Some(names)
}

/// A distinguished name as text (RFC 4514): the last part first.
fn rfc4514(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (at, part) in parts.into_iter().rev().enumerate() {
        for (within, attribute) in part.iter().enumerate() {
            out.push_str(match (at, within) {
                (0, 0) => "",
                (_, 0) => ",",
                _ => "+",
            });
            let oid = attribute.attr_type().to_id_string();
            let short = SHORT.iter().find(|(id, _)| *id == oid).map(|(_, short)| *short);
            out.push_str(short.unwrap_or(&oid));
            out.push('=');
            match attribute.as_str() {
                Ok(value) if short.is_some() => escape(&mut out, value),
                _ => {
                    out.push('#');
                    for byte in attribute.attr_value().data {
                        let _ = write!(out, "{byte:02x}");
                    }
                }
            }
        }
    }
    out
}

/// Appends `value` with what has a meaning in it escaped (RFC 4514 section 2.4).
fn escape(out: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', c]),
            ' ' if at == 0 || at == last => out.push_str("\\ "),
            '#' if at == 0 => out.push_str("\\#"),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(out, "\\{byte:02x}");
                }
            }
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    #[test]
    fn names_of_a_certificate() {
        let mut params = CertificateParams::new(["d1.example".to_owned(), "d2.example".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("urn:dev:1".try_into().unwrap()));
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(DnType::OrganizationName, "A, B + C");
        params.distinguished_name.push(DnType::CommonName, "#device \"1\" ");
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let expected = CertificateNames {
            subject: "O=A\\, B \\+ C,C=DE,CN=\\#device \\\"1\\\"\\ ".to_owned(),
            common_name: Some("#device \"1\" ".to_owned()),
            dns: vec!["d1.example".to_owned(), "d2.example".to_owned()],
            uri: vec!["urn:dev:1".to_owned()],
        };
        assert_eq!(names(made.der()).unwrap(), expected);
        for cut in 0..made.der().len() {
            assert_eq!(names(&made.der()[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn names_are_bounded() {
        let many = (0..100).map(|n| format!("d{n}.example"));
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let mut params = CertificateParams::new(many.collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, long);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let names = names(made.der()).unwrap();
        assert_eq!((names.dns.len(), names.common_name, &*names.subject), (NAMES_MAX, None, ""));
    }
}
