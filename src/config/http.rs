//! What the options about admin HTTP say together.

use super::kinds::ClientCertificates;
use super::options::Http;
use super::{Config, sources};
use std::net::SocketAddr;

impl Http {
    /// Whether admin HTTP speaks TLS.
    pub fn has_tls(&self) -> bool {
        !self.cert_file.is_empty()
    }

    /// Whether callers must present tokens.
    pub fn has_tokens(&self) -> bool {
        self.admin_token_file.is_some() || self.read_token_file.is_some()
    }

    /// Its address, if other machines may reach that.
    pub fn beyond_loopback(&self) -> Option<SocketAddr> {
        self.address.filter(|address| !address.ip().to_canonical().is_loopback())
    }

    fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        let mut refuse = |option, why: &str| wrong.push((option, why.to_owned()));
        let asks = self.client_certificates != ClientCertificates::Off;
        if self.cert_file.len() != self.key_file.len() {
            let option = if self.has_tls() { "key_file" } else { "cert_file" };
            refuse(option, "cert_file and key_file must name as many files each, in the same order");
        }
        if asks && !self.has_tls() {
            refuse("client_certificates", "it means nothing without TLS: set cert_file and key_file");
        }
        if asks && self.client_ca_file.is_empty() {
            refuse("client_ca_file", "client_certificates needs the authorities that sign them");
        }
        for (option, files) in [("client_ca_file", &self.client_ca_file), ("crl_file", &self.crl_file)] {
            if !asks && !files.is_empty() {
                refuse(option, "it means nothing while client_certificates is off");
            }
        }
        if let Some(address) = self.beyond_loopback()
            && self.has_tokens()
            && !self.has_tls()
            && !self.plain_tokens
        {
            let why = format!(
                "{address} (http.address) can be reached from other machines, and tokens could be read on the way: set http.cert_file and \
                 http.key_file, or http.plain_tokens to true if a proxy of yours has TLS before it"
            );
            refuse("plain_tokens", &why);
        }
        wrong
    }
}

impl Config {
    /// What no single option about admin HTTP can tell.
    pub(super) fn check_http(&self, reader: &mut sources::Reader) {
        for (option, why) in self.http.contradictions() {
            reader.refuse(&format!("http.{option}"), &why);
        }
    }

    /// What is allowed and may not be wanted, in words: said at each start, and by `berth config check`.
    pub fn warnings(&self) -> Vec<String> {
        let mut said = Vec::new();
        if let Some(address) = self.http.beyond_loopback() {
            if !self.http.has_tokens() {
                said.push(format!(
                    "admin HTTP at {address} (http.address) asks for no token: whoever reaches it reads /metrics and /cluster/status \
                     (http.admin_token_file)"
                ));
            } else if !self.http.has_tls() {
                said.push(format!(
                    "admin HTTP at {address} (http.address) has no TLS: whoever is on the way can read and use its tokens (http.cert_file)"
                ));
            }
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is set, the keys that are refused for it, and how many warnings there are.
    #[test]
    fn what_is_unsafe_or_contradicts_itself() {
        type Case = (&'static [(&'static str, &'static str)], &'static [&'static str], usize);
        const TLS: [(&str, &str); 2] = [("cert_file", "/c"), ("key_file", "/k")];
        const FAR: (&str, &str) = ("address", "0.0.0.0:8081");
        const TOKEN: (&str, &str) = ("admin_token_file", "/t");
        let cases: &[Case] = &[
            (&[], &[], 0),
            (&[TOKEN], &[], 0),
            (&[TLS[0], TLS[1]], &[], 0),
            (&[TLS[0]], &["key_file"], 0),
            (&[TLS[1]], &["cert_file"], 0),
            (&[TLS[0], ("key_file", "/k,/l")], &["key_file"], 0),
            (&[FAR], &[], 1),
            (&[("address", "[::ffff:127.0.0.1]:1"), TOKEN], &[], 0),
            (&[("address", "off"), TOKEN], &[], 0),
            (&[FAR, TOKEN], &["plain_tokens"], 1),
            (&[("address", "[::]:1"), ("read_token_file", "/t")], &["plain_tokens"], 1),
            (&[FAR, TOKEN, ("plain_tokens", "true")], &[], 1),
            (&[FAR, TOKEN, TLS[0], TLS[1]], &[], 0),
            (&[("client_certificates", "required")], &["client_certificates", "client_ca_file"], 0),
            (&[TLS[0], TLS[1], ("client_certificates", "optional")], &["client_ca_file"], 0),
            (&[TLS[0], TLS[1], ("client_certificates", "optional"), ("client_ca_file", "/a")], &[], 0),
            (&[("client_ca_file", "/a"), ("crl_file", "/r")], &["client_ca_file", "crl_file"], 0),
        ];
        for (pairs, wrong, warnings) in cases {
            let keys: Vec<_> = pairs.iter().map(|(k, v)| (format!("http.{k}"), *v)).collect();
            let pairs: Vec<_> = keys.iter().map(|(k, v)| (&**k, *v)).collect();
            match Config::from_pairs(&pairs) {
                Ok(config) => {
                    assert!(wrong.is_empty(), "{pairs:?}");
                    assert_eq!(config.warnings().len(), *warnings, "{pairs:?}: {:?}", config.warnings());
                }
                Err(problems) => {
                    let found: Vec<_> = problems.0.iter().map(|p| p.key.clone()).collect();
                    let expected: Vec<_> = wrong.iter().map(|w| format!("http.{w}")).collect();
                    assert_eq!(found, expected, "{pairs:?}");
                }
            }
        }
    }
}
