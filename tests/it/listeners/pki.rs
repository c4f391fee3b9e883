//! An authority and what it signs and revokes, as files.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A year that has not come, and one that is over.
pub const GOOD: i32 = 2090;
pub const OVER: i32 = 2001;

/// A file.
#[derive(Clone, Debug)]
pub struct Pem {
    pub file: String,
    pub text: String,
}

/// See the module.
pub struct Pki {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub fn new(name: &str) -> Pki {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pki = Pki { dir: tempfile::tempdir().unwrap(), issuer };
        pki.save("ca.pem", &pki.issuer.pem());
        pki
    }

    /// An authority that this one has signed, with this serial number.
    pub fn authorise(&self, name: &str, serial: u64) -> Pki {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &*self.issuer).unwrap();
        let pki = Pki { dir: tempfile::tempdir().unwrap(), issuer };
        pki.save("ca.pem", &pki.issuer.pem());
        pki
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that only this user can read.
    pub fn save(&self, name: &str, text: &str) -> Pem {
        save(&self.path(name), text)
    }

    /// Its own certificate.
    pub fn ca(&self) -> Pem {
        let file = self.path("ca.pem").to_str().unwrap().to_owned();
        Pem { file, text: self.issuer.pem() }
    }

    /// A certificate of the name `cn` and its key, valid until `year`, with this serial number, for these hosts.
    pub fn sign(&self, cn: &str, serial: u64, year: i32, hosts: &[&str]) -> (Pem, Pem) {
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.subject_alt_names.push(SanType::URI(format!("urn:device:{cn}").try_into().unwrap()));
        params.not_after = date_time_ymd(year, 1, 2);
        params.serial_number = Some(SerialNumber::from(serial));
        params.distinguished_name.push(DnType::CommonName, cn);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &*self.issuer).unwrap();
        let name = format!("{cn}-{serial}");
        (
            self.save(&format!("{name}.pem"), &cert.pem()),
            self.save(&format!("{name}.key"), &key.serialize_pem()),
        )
    }

    /// A certificate of a broker on this machine.
    pub fn server(&self, cn: &str) -> (Pem, Pem) {
        self.sign(cn, 1000, GOOD, &["localhost", "127.0.0.1"])
    }

    /// The text of a list that revokes these serial numbers.
    pub fn crl(&self, number: u64, revoked: &[u64]) -> String {
        let revoked_certs = revoked
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 2),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&*self.issuer).unwrap().pem().unwrap()
    }
}

/// Writes a file that only this user can read.
pub fn save(path: &Path, text: &str) -> Pem {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    Pem { file: path.to_str().unwrap().to_owned(), text: text.to_owned() }
}

/// Files as Kubernetes mounts a Secret: links to a link to a directory, which is replaced as a whole.
pub struct Mount {
    dir: TempDir,
    version: u32,
}

impl Mount {
    /// With no files yet.
    pub fn new() -> Mount {
        Mount { dir: tempfile::tempdir().unwrap(), version: 0 }
    }

    /// Puts these files, by name, in the place of all that were there.
    pub fn swap(&mut self, files: &[(&str, &str)]) {
        self.version += 1;
        let dir = self.dir.path();
        let data = format!("..version-{}", self.version);
        std::fs::create_dir(dir.join(&data)).unwrap();
        for (name, text) in files {
            save(&dir.join(&data).join(name), text);
        }
        symlink(&data, dir.join("..data_tmp")).unwrap();
        std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        for (name, _) in files {
            let link = dir.join(name);
            if !link.is_symlink() {
                symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
    }

    /// The path of a file.
    pub fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}
