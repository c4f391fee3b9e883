//! Certificates for tests.

use super::etcd::Etcd as Server;
use berth::etcd::tls::Pem;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

/// An authority and what it signs, as files.
pub struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority { dir: tempfile::tempdir().unwrap(), issuer };
        // Once: members read it when they please.
        authority.save("ca.pem", authority.issuer.pem());
        authority
    }

    /// Writes a file that only this user can read.
    pub fn save(&self, name: &str, text: String) -> Pem {
        let path = self.dir.path().join(name);
        crate::listeners::pki::save(&path, &text);
        Pem { file: path.to_str().unwrap().to_owned(), bytes: text.into_bytes() }
    }

    /// Its own certificate.
    pub fn ca(&self) -> Pem {
        let file = self.dir.path().join("ca.pem").to_str().unwrap().to_owned();
        Pem { file, bytes: self.issuer.pem().into_bytes() }
    }

    /// A certificate for `host`, and its key; expired if `year` has passed.
    pub fn sign(&self, name: &str, host: &str, year: i32) -> (Pem, Pem) {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 2);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &*self.issuer).unwrap();
        (
            self.save(&format!("{name}.pem"), cert.pem()),
            self.save(&format!("{name}.key"), key.serialize_pem()),
        )
    }

    /// An etcd member that asks its clients for a certificate.
    pub fn server(&self, identity: &(Pem, Pem)) -> Server {
        let arg = |name: &str, pem: &Pem| format!("--{name}={}", pem.file);
        let args = [
            arg("cert-file", &identity.0),
            arg("key-file", &identity.1),
            arg("trusted-ca-file", &self.ca()),
            "--client-cert-auth".to_owned(),
        ];
        Server::with(1, "https", &args)
    }
}
