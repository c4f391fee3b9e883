//! Which certificate a client gets, by the server name it asks for (RFC 6066 section 3).

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates with their names.
#[derive(Debug)]
pub(super) struct ByName {
    all: Vec<Arc<CertifiedKey>>,
    /// Places in `all` by name, in lower case; `*.example.org` as it is.
    names: HashMap<String, Vec<usize>>,
}

impl ByName {
    pub(super) fn new(all: Vec<Arc<CertifiedKey>>) -> ByName {
        let mut names: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, key) in all.iter().enumerate() {
            let Some(own) = key.cert.first() else { continue };
            for name in dns_names(own) {
                names.entry(name).or_default().push(at);
            }
        }
        ByName { all, names }
    }

    /// Places of the certificates for `name`.
    fn places(&self, name: &str) -> &[usize] {
        let name = name.to_ascii_lowercase();
        let any = || self.names.get(&format!("*.{}", name.split_once('.')?.1));
        self.names.get(&name).or_else(any).map_or(&[], Vec::as_slice)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().map_or(&[][..], |name| self.places(name));
        let named = named.iter().filter_map(|at| self.all.get(*at));
        // Of several for one name the client may understand one only.
        let mut candidates = named.chain(&self.all);
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        candidates.clone().find(usable).or_else(|| candidates.next()).cloned()
    }
}

fn dns_names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    dns.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::PrivateKeyDer;

    #[test]
    fn the_certificate_of_a_name() {
        let certified = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let key = super::super::provider().key_provider.load_private_key(key).unwrap();
            Arc::new(CertifiedKey::new(vec![made.cert.der().clone()], key))
        };
        let by_name = ByName::new(vec![
            certified(&["a.example"]),
            certified(&["b.example", "*.b.example"]),
            certified(&["*.a.example", "B.example"]),
        ]);
        for (name, places) in [
            ("a.example", &[0][..]),
            ("A.EXAMPLE", &[0]),
            ("b.example", &[1, 2]),
            ("x.b.example", &[1]),
            ("x.a.example", &[2]),
            ("x.y.a.example", &[]),
            ("example", &[]),
            ("", &[]),
        ] {
            assert_eq!(by_name.places(name), places, "{name}");
        }
    }
}
