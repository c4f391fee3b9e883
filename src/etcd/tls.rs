//! TLS to etcd: what is wrong with a certificate is found here, before the first connection, where the file has a name.

use super::error::EtcdError;
use crate::clock::Time;
use crate::tls::certificate;
use etcd_client::{Certificate, Identity, TlsOptions};

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
    /// Whether the files can be used at `now`.
    ///
    /// # Errors
    /// A file that cannot be used or has expired: which, and what to do.
    pub fn check(&self, now: Time) -> Result<(), EtcdError> {
        self.options(now).map(drop)
    }

    /// With what the files hold now; `None` if one cannot be read, or they cannot be used.
    pub(super) fn again(&self, now: Time) -> Option<EtcdTls> {
        let read = |pem: &Pem| {
            let bytes = std::fs::read(&pem.file).ok()?;
            Some(Pem { file: pem.file.clone(), bytes })
        };
        let ca = match &self.ca {
            Some(ca) => Some(read(ca)?),
            None => None,
        };
        let identity = match &self.identity {
            Some((cert, key)) => Some((read(cert)?, read(key)?)),
            None => None,
        };
        let again = EtcdTls { ca, identity };
        again.options(now).is_ok().then_some(again)
    }

    /// Checks the files and makes the client's configuration of them.
    ///
    /// # Errors
    /// A file that cannot be used or has expired at `now`: which, and what to do.
    pub(super) fn options(&self, now: Time) -> Result<TlsOptions, EtcdError> {
        let mut options = TlsOptions::new();
        match &self.ca {
            Some(ca) => {
                certificate::check(&ca.file, &ca.bytes, "etcd.ca_file", now)?;
                options = options.ca_certificate(Certificate::from_pem(&ca.bytes));
            }
            None => options = options.with_enabled_roots(),
        }
        if let Some((cert, key)) = &self.identity {
            certificate::check(&cert.file, &cert.bytes, "etcd.cert_file", now)?;
            certificate::check_key(&key.file, &key.bytes, "etcd.key_file")?;
            options = options.identity(Identity::from_pem(&cert.bytes, &key.bytes));
        }
        Ok(options)
    }
}
