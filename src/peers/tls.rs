//! Mutual TLS, and what went wrong with it in words that name the file.

use super::options::PeerTls;
use std::error::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

/// The side that listens.
pub(super) fn server(tls: &PeerTls) -> ServerTlsConfig {
    ServerTlsConfig::new()
        .identity(Identity::from_pem(&tls.cert.pem, &tls.key.pem))
        .client_ca_root(Certificate::from_pem(&tls.ca.pem))
}

/// The side that dials; the certificate shown must be valid for `host`.
pub(super) fn client(tls: &PeerTls, host: &str) -> ClientTlsConfig {
    ClientTlsConfig::new()
        .identity(Identity::from_pem(&tls.cert.pem, &tls.key.pem))
        .ca_certificate(Certificate::from_pem(&tls.ca.pem))
        .domain_name(host)
}

/// Sets up both sides.
///
/// # Errors
/// What the TLS library says.
pub(super) fn try_out(tls: &PeerTls) -> Result<(), String> {
    let listens = Server::builder().tls_config(server(tls)).map(drop);
    let dials = Endpoint::from_static("https://localhost").tls_config(client(tls, "localhost")).map(drop);
    listens.and(dials).map_err(|e| chain(&e))
}

/// An error with all its causes, each said once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    with_causes(&error.to_string(), error.source())
}

/// What is said, and each cause that says more than those before it.
pub(super) fn with_causes(said: &str, mut cause: Option<&(dyn Error + 'static)>) -> String {
    let bare = |text: &str| text.trim().trim_end_matches(':').to_owned();
    let mut said = bare(said);
    while let Some(error) = cause {
        let text = bare(&error.to_string());
        if !said.contains(&text) {
            said.push_str(": ");
            said.push_str(&text);
        }
        cause = error.source();
    }
    said
}

/// What a TLS failure in `error` (as [`chain`] has it) means and what to do; `None` if it is none.
pub(super) fn explain(error: &str, tls: Option<&PeerTls>, address: &str) -> Option<String> {
    let Some(tls) = tls else {
        // Plain to a TLS port: an alert in the place of HTTP/2.
        return error.contains("frame with invalid size").then(|| {
            format!("{address} does not speak plain HTTP/2: does the other node have cluster.tls on?")
        });
    };
    let (ca, cert) = (&tls.ca.path, &tls.cert.path);
    let has = |text: &str| error.contains(text);
    let why = if has("alert: UnknownCA") || has("alert: DecryptError") {
        format!(
            "{address} does not accept our certificate {cert}: it is not signed by the other node's cluster.tls.ca_file"
        )
    } else if has("alert: CertificateExpired") {
        format!(
            "{address} does not accept our certificate {cert}: it has expired; renew it (or the clocks differ)"
        )
    } else if has("alert: BadCertificate")
        || has("alert: CertificateUnknown")
        || has("alert: UnsupportedCertificate")
    {
        format!("{address} does not accept our certificate {cert}: is it made for client authentication?")
    } else if has("alert: CertificateRequired") {
        format!("{address} asks for a client certificate: set cluster.tls.cert_file and cluster.tls.key_file")
    } else if has("Expired") || has("certificate expired") {
        format!(
            "the certificate of {address} has expired: renew it there (cluster.tls.cert_file), or set the clock right"
        )
    } else if has("NotValidYet") || has("not valid yet") {
        format!("the certificate of {address} is not valid yet: set the clocks right, or wait")
    } else if has("UnknownIssuer") || has("BadSignature") {
        format!(
            "the certificate of {address} is not signed by {ca} (cluster.tls.ca_file): use one authority for all nodes"
        )
    } else if has("NotValidForName") || has("not valid for name") {
        format!(
            "the certificate of {address} is not valid for that host: put it among the subject alternative names, or change \
             cluster.advertise_peer there"
        )
    } else if has("invalid peer certificate") {
        format!("the certificate of {address} is not accepted; check it against {ca} (cluster.tls.ca_file)")
    } else if has("InvalidContentType") || has("corrupt message") {
        format!("{address} does not speak TLS: is cluster.tls off there?")
    } else {
        return None;
    };
    Some(format!("{why} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error with a cause.
    #[derive(Debug)]
    struct Said(&'static str, Option<Box<Said>>);

    impl std::fmt::Display for Said {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Said {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    /// Texts from the outermost error to the innermost, and what is told.
    #[test]
    fn each_cause_is_told_once_and_an_empty_one_not_at_all() {
        let cases: &[(&[&str], &str)] = &[
            (&["broke"], "broke"),
            (&["broke", "", "closed"], "broke: closed"),
            (&["h2: error reading", "error reading: ", "error reading: ", ""], "h2: error reading"),
            (&["h2: error reading", "error reading", "broken pipe"], "h2: error reading: broken pipe"),
        ];
        for (texts, told) in cases {
            let nested = texts.iter().rev().fold(None, |cause, text| Some(Box::new(Said(text, cause))));
            assert_eq!(chain(&*nested.unwrap()), *told, "{texts:?}");
        }
    }
}
