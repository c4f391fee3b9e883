//! Listeners: sections by any names, with the options of one.

use super::kinds::{ClientCertificates, ProxyProtocol};
use super::listener_kinds::{ListenerType, Origins};
use super::options::Listener;
use super::sources::Reader;
use std::borrow::Cow;
use std::net::SocketAddr;

/// Where the options of all listeners are listed.
const TEMPLATE: &str = "tcp";

/// Length of a listener's name.
const NAME_LEN_MAX: usize = 32;

/// Where clients connect: every listener that is configured, `tcp` first, the others by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners(Vec<(String, Listener)>);

/// The key by which the table of options knows `key`: that of the listener `tcp`, if it is one of another listener.
pub(super) fn listed(key: &str) -> Cow<'_, str> {
    match split(key) {
        Some((_, "")) => Cow::Owned(format!("listeners.{TEMPLATE}")),
        Some((_, option)) => Cow::Owned(format!("listeners.{TEMPLATE}.{option}")),
        None => Cow::Borrowed(key),
    }
}

/// The option of the listener that `key` names which the table lists as `listed`.
pub(super) fn unlisted(listed: &str, key: &str) -> String {
    match (split(listed), split(key)) {
        (Some((_, option)), Some((name, _))) if !option.is_empty() => format!("listeners.{name}.{option}"),
        _ => listed.to_owned(),
    }
}

/// The name of the listener that `key` is about, and its option: empty if it is the listener itself.
pub(super) fn split(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix("listeners.")?;
    let (name, option) = rest.split_once('.').unwrap_or((rest, ""));
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    ((1..=NAME_LEN_MAX).contains(&name.len()) && name.chars().all(good)).then_some((name, option))
}

impl Listeners {
    pub(super) fn take(reader: &mut Reader) -> Option<Listeners> {
        let mut names: Vec<String> = reader.listeners().filter(|name| name != TEMPLATE).collect();
        names.sort();
        names.insert(0, TEMPLATE.to_owned());
        let mut taken = Vec::new();
        let mut complete = true;
        for name in names {
            match Listener::take_from(reader, &format!("listeners.{name}")) {
                Some(listener) => taken.push((name.clone(), listener.completed(&name))),
                None => complete = false,
            }
        }
        complete.then_some(Listeners(taken))
    }

    /// All of them, with their names, those that are not opened included.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Listener)> {
        self.0.iter().map(|(name, listener)| (&**name, listener))
    }

    /// Those that are opened, with their names.
    pub fn opened(&self) -> impl Iterator<Item = (&str, &Listener)> {
        self.all().filter(|(_, listener)| listener.enabled)
    }

    /// The listener of this name.
    pub fn get(&self, name: &str) -> Option<&Listener> {
        self.all().find(|(n, _)| *n == name).map(|(_, listener)| listener)
    }

    /// The first address that other machines may reach where nobody has said who may come without an account, and the listener's name.
    pub fn beyond_loopback(&self) -> Option<(&str, SocketAddr)> {
        let silent = self.opened().filter(|(_, listener)| listener.allow_anonymous.is_none());
        silent.into_iter().find_map(|(name, listener)| {
            let far = listener.address.iter().find(|a| !a.ip().to_canonical().is_loopback());
            far.map(|address| (name, *address))
        })
    }

    /// What no single option can tell.
    pub(super) fn check(&self, reader: &mut Reader) {
        if self.opened().next().is_none() {
            reader.refuse("listeners.tcp.enabled", "no listener is enabled: nobody could connect");
        }
        let mut seen: Vec<(SocketAddr, &str)> = Vec::new();
        for (name, listener) in self.opened() {
            let mut refuse =
                |option: &str, why: &str| reader.refuse(&format!("listeners.{name}.{option}"), why);
            if listener.kind.is_none() {
                refuse("type", "set it to tcp, tls, ws or wss: only listeners of these names need no type");
                continue;
            }
            for (option, why) in listener.contradictions() {
                refuse(option, &why);
            }
            for address in &listener.address {
                match seen.iter().find(|(taken, _)| taken == address && address.port() != 0) {
                    Some((_, other)) => refuse("address", &format!("{address} is that of listeners.{other}")),
                    None => seen.push((*address, name)),
                }
            }
        }
    }
}

impl Listener {
    /// What is spoken below MQTT.
    pub fn speaks(&self) -> ListenerType {
        self.kind.unwrap_or(ListenerType::Tcp)
    }

    /// With the type and the address that the listener's name says.
    fn completed(mut self, name: &str) -> Listener {
        self.kind = self.kind.or_else(|| ListenerType::of(name));
        if self.address.is_empty() {
            self.address.extend(self.kind.map(ListenerType::address));
        }
        self
    }

    fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        let mut refuse = |option, why: String| wrong.push((option, why));
        let kind = self.speaks();
        let nothing = |what: &str| format!("{what} means nothing with type {}", kind.name());
        let client = self.client_certificates != ClientCertificates::Off;
        if kind.has_tls() {
            if self.cert_file.is_empty() {
                let kind = kind.name();
                refuse("cert_file", format!("type {kind} needs a certificate: set cert_file and key_file"));
            } else if self.cert_file.len() != self.key_file.len() {
                refuse("key_file", "there must be as many as in cert_file, in the same order".to_owned());
            }
            if client && self.client_ca_file.is_empty() {
                let why = "client_certificates needs the authorities that sign them: set client_ca_file";
                refuse("client_ca_file", why.to_owned());
            }
            for (option, files) in [("client_ca_file", &self.client_ca_file), ("crl_file", &self.crl_file)] {
                if !client && !files.is_empty() {
                    refuse(option, "it means nothing while client_certificates is off".to_owned());
                }
            }
        } else {
            let files = [
                ("cert_file", &self.cert_file),
                ("key_file", &self.key_file),
                ("client_ca_file", &self.client_ca_file),
                ("crl_file", &self.crl_file),
            ];
            for (option, _) in files.into_iter().filter(|(_, files)| !files.is_empty()) {
                refuse(option, nothing("a certificate"));
            }
            if client {
                refuse("client_certificates", nothing("a certificate"));
            }
        }
        if !kind.has_websocket() {
            if self.path != "/mqtt" {
                refuse("path", nothing("a path"));
            }
            if self.allowed_origins != Origins::Same {
                refuse("allowed_origins", nothing("a web page"));
            }
        }
        match (self.proxy_protocol, self.proxy_from.is_empty()) {
            (ProxyProtocol::Required, true) => {
                refuse("proxy_from", "proxy_protocol needs the proxies' addresses here".to_owned());
            }
            (ProxyProtocol::Off, false) => {
                refuse("proxy_from", "it means nothing while proxy_protocol is off".to_owned());
            }
            _ => {}
        }
        if let (Some(min), Some(max)) = (self.min_keep_alive, self.max_keep_alive)
            && min > max
        {
            refuse("min_keep_alive", "it must not be above max_keep_alive".to_owned());
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Flag, Sources};
    use super::*;

    #[test]
    fn keys_of_other_listeners_are_those_of_the_first() {
        for (key, expected) in [
            ("listeners.tcp.address", "listeners.tcp.address"),
            ("listeners.front-1.address", "listeners.tcp.address"),
            ("listeners.my_ws", "listeners.tcp"),
            ("listeners.Tls.address", "listeners.Tls.address"),
            ("listeners..address", "listeners..address"),
            ("listeners", "listeners"),
            ("limits.max_qos", "limits.max_qos"),
        ] {
            assert_eq!(listed(key), expected, "{key}");
        }
        assert_eq!(unlisted("listeners.tcp.path", "listeners.front.pth"), "listeners.front.path");
        assert_eq!(unlisted("limits.max_qos", "listeners.front.max_qos"), "limits.max_qos");
    }

    #[test]
    fn any_number_of_listeners_by_any_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "listeners:\n  ws:\n  front: {type: wss, cert_file: [/a, /b], key_file: '/c,/d'}\n  off: {type: tls, enabled: false}\n";
        std::fs::write(file.path(), text).unwrap();
        let env =
            [("BERTH__LISTENERS__IN_HOUSE__TYPE", "tcp"), ("BERTH__LISTENERS__IN_HOUSE__ADDRESS", "[::1]:7")];
        let env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let flags = vec![Flag::set("listeners.front.path", "/x")];
        let sources = Sources { file: Some(file.path().to_owned()), env, flags };
        let config = Config::load(&sources).unwrap();
        let names: Vec<_> = config.listeners.all().map(|(name, _)| name).collect();
        assert_eq!(names, ["tcp", "front", "in_house", "off", "ws"]);
        let opened: Vec<_> =
            config.listeners.opened().map(|(_, l)| (l.speaks().name(), l.address[0].to_string())).collect();
        let expected = [
            ("tcp", "127.0.0.1:1883"),
            ("wss", "127.0.0.1:8084"),
            ("tcp", "[::1]:7"),
            ("ws", "127.0.0.1:8083"),
        ];
        assert_eq!(opened, expected.map(|(kind, address)| (kind, address.to_owned())));
        let front = config.listeners.get("front").unwrap();
        assert_eq!((&*front.path, front.cert_file.len(), front.key_file.len()), ("/x", 2, 2));
    }

    /// What is set, and the key that is refused for it.
    #[test]
    fn what_contradicts_itself_is_refused() {
        type Case = (&'static [(&'static str, &'static str)], Option<&'static str>);
        const TLS: [(&str, &str); 2] = [("a.cert_file", "/c"), ("a.key_file", "/k")];
        let cases: &[Case] = &[
            (&[("a.type", "tcp"), ("a.address", "127.0.0.1:9")], None),
            (&[("a.address", "127.0.0.1:9")], Some("a.type")),
            (&[("a.type", "tcp")], Some("a.address")),
            (&[("a.type", "tls")], Some("a.cert_file")),
            (&[("a.type", "tls"), TLS[0], TLS[1]], None),
            (&[("a.type", "tls"), TLS[0], ("a.key_file", "/k,/l")], Some("a.key_file")),
            (&[("a.type", "ws"), TLS[1]], Some("a.key_file")),
            (&[("a.type", "ws"), ("a.client_certificates", "optional")], Some("a.client_certificates")),
            (
                &[("a.type", "tls"), TLS[0], TLS[1], ("a.client_certificates", "required")],
                Some("a.client_ca_file"),
            ),
            (&[("a.type", "tls"), TLS[0], TLS[1], ("a.crl_file", "/r")], Some("a.crl_file")),
            (&[("a.type", "tls"), TLS[0], TLS[1], ("a.path", "/x")], Some("a.path")),
            (&[("a.type", "tls"), TLS[0], TLS[1], ("a.allowed_origins", "*")], Some("a.allowed_origins")),
            (&[("tcp.proxy_protocol", "required")], Some("tcp.proxy_from")),
            (&[("tcp.proxy_from", "10.0.0.1")], Some("tcp.proxy_from")),
            (&[("tcp.proxy_protocol", "required"), ("tcp.proxy_from", "10.0.0.0/8")], None),
            (&[("tcp.min_keep_alive", "10s"), ("tcp.max_keep_alive", "9s")], Some("tcp.min_keep_alive")),
            (&[("tcp.enabled", "false")], Some("tcp.enabled")),
            (&[("tcp.versions", "3.1.2")], Some("tcp.versions")),
            (&[("ws.adress", "127.0.0.1:9")], Some("ws.adress")),
            (&[("Ws.address", "127.0.0.1:9")], Some("Ws.address")),
        ];
        for (pairs, wrong) in cases {
            let keys: Vec<_> = pairs.iter().map(|(k, v)| (format!("listeners.{k}"), *v)).collect();
            let pairs: Vec<_> = keys.iter().map(|(k, v)| (&**k, *v)).collect();
            let problems = Config::from_pairs(&pairs).err().map(|p| p.0).unwrap_or_default();
            let found: Vec<_> = problems.iter().map(|p| p.key.clone()).collect();
            let expected: Vec<_> = wrong.iter().map(|w| format!("listeners.{w}")).collect();
            assert_eq!(found, expected, "{pairs:?}");
        }
        let problems = Config::from_pairs(&[("listeners.ws.adress", "127.0.0.1:9")]).unwrap_err();
        assert!(problems.to_string().contains("did you mean listeners.ws.address?"), "{problems}");
    }
}
