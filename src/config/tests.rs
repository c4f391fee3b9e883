use super::*;
use std::net::SocketAddr;
use std::time::Duration;

fn file(text: &str) -> (tempfile::NamedTempFile, Sources) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    (file, sources)
}

fn env(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn addresses(list: &[&str]) -> Vec<SocketAddr> {
    list.iter().map(|a| a.parse().unwrap()).collect()
}

#[test]
fn every_default_is_valid() {
    let config = Config::from_pairs(&[("node.id", "n1")]).unwrap();
    assert_eq!(config.listeners.get("tcp").unwrap().address, addresses(&["127.0.0.1:1883"]));
    assert_eq!(config.limits.max_packet_size, 16 << 20);
    assert_eq!(config.limits.max_keep_alive, None);
    assert_eq!(config.sys.interval, Some(Duration::from_secs(10)));
    assert_eq!(config.storage.kind, StorageType::Redb);
    assert_eq!((config.auth.allow_anonymous, config.accounts.any()), (None, false));
    assert_eq!(config.auth.client_id_theft, ClientIdTheft::Refuse);
}

#[test]
fn later_layers_win() {
    let (_file, mut sources) =
        file("limits:\n  max_qos: 0\n  max_connections: 1\nsession:\n  max_sessions: 7\n");
    sources.env = env(&[
        ("BERTH__LIMITS__MAX_CONNECTIONS", "2"),
        ("BERTH__LIMITS__MAX_QOS", "1"),
        ("BERTH_SERVICE_PORT", "not ours"),
        ("PATH", "/bin"),
    ]);
    sources.flags = vec![Flag::set("limits.max_qos", "2"), Flag::set("limits.max_qos", "1")];
    let config = Config::load(&sources).unwrap();
    assert_eq!((config.session.max_sessions, config.limits.max_connections), (7, 2));
    assert_eq!(config.limits.max_qos, 1);
}

#[test]
fn yaml_values_of_all_shapes() {
    let (_file, sources) = file(
        "node: {id: 007}\n\
         listeners:\n  tcp:\n    address: ['127.0.0.1:1', \"[::1]:2\", localhost:3]\n    nodelay: false\n\
         http:\n  address: off\n\
         limits:\n  max_keep_alive: 90\n  connect_timeout: 1500ms\n  max_packet_size: 64KiB\n  receive_maximum:\n\
         session:\n\
         log: {format: json, level: 'warn,berth::server=debug'}\n",
    );
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.node.id, "007", "as it is written");
    assert_eq!(
        config.listeners.get("tcp").unwrap().address,
        addresses(&["127.0.0.1:1", "[::1]:2", "127.0.0.1:3"])
    );
    assert!(!config.listeners.get("tcp").unwrap().nodelay);
    assert_eq!(config.http.address, None);
    assert_eq!(config.limits.max_keep_alive, Some(Duration::from_secs(90)));
    assert_eq!(config.limits.connect_timeout, Duration::from_millis(1500));
    assert_eq!(config.limits.max_packet_size, 65_536);
    assert_eq!(config.limits.receive_maximum, 1000);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.level, "warn,berth::server=debug");
}

#[test]
fn an_entry_of_a_list_is_one_entry() {
    for (list, why) in [
        ("['127.0.0.1:1,127.0.0.1:2']", "an entry of a list must not have a comma in it"),
        ("[[127.0.0.1:1]]", "expected a list of texts"),
        ("[~]", "expected a list of texts"),
    ] {
        let (_file, sources) = file(&format!("listeners:\n  tcp:\n    address: {list}\n"));
        let problems = Config::load(&sources).unwrap_err().0;
        assert_eq!((problems.len(), &*problems[0].reason), (1, why), "{list}");
        assert!(problems[0].source.ends_with(", line 3"), "{}", problems[0].source);
    }
}

#[test]
fn a_file_may_say_something_once_and_refer_to_it() {
    let (_file, sources) =
        file("listeners:\n  tcp: &usual {max_connections: 7, nodelay: false}\n  ws: *usual\n");
    let config = Config::load(&sources).unwrap();
    for name in ["tcp", "ws"] {
        let listener = config.listeners.get(name).unwrap();
        assert_eq!((listener.max_connections, listener.nodelay), (Some(7), false), "{name}");
    }
}

/// A section with a slip in its name, and nothing in it, or nothing but defaults.
#[test]
fn an_empty_section_that_there_is_not_is_refused() {
    for (text, key) in [
        ("listenrs: {tcp: {}}\n", Some("listenrs.tcp")),
        ("listenrs: {}\n", Some("listenrs")),
        ("log: {lines: {}}\n", Some("log.lines")),
        ("listeners: {tcp: {}}\n", None),
        ("listeners: {}\nlog: {}\n", None),
    ] {
        let (_file, sources) = file(text);
        let told = Config::load(&sources).map(drop).map_err(|problems| problems.to_string());
        match key {
            Some(key) => {
                let told = told.unwrap_err();
                assert!(told.contains(&format!("{key}: unknown option")), "{text}: {told}");
            }
            None => told.unwrap_or_else(|told| panic!("{text}: {told}")),
        }
    }
}

#[test]
fn all_problems_are_reported_at_once_with_their_origin() {
    let (file, mut sources) =
        file("limits:\n  max_qos: 3\n  max_conections: 5\nlog: 7\nstorage:\n  dir: {a: 1}\n");
    sources.env = env(&[("BERTH__SYS__INTERVAL", "soon"), ("BERTH__TLS__CERT", "x")]);
    sources.flags = vec![
        Flag { name: "--log-level", key: "log.level".to_owned(), value: "loud".to_owned() },
        Flag::set("listeners.tcp.address", "nowhere"),
    ];
    let problems = Config::load(&sources).unwrap_err();
    let text = problems.to_string();
    let from_file = |line: usize| format!("(from file {}, line {line})", file.path().display());
    let expected = [
        "8 problems in the configuration:".to_owned(),
        format!("  limits.max_qos = \"3\": expected a number from 0 to 2 {}", from_file(2)),
        format!(
            "  limits.max_conections: unknown option; did you mean limits.max_connections? {}",
            from_file(3)
        ),
        format!("  log = \"7\": this is a section, not an option {}", from_file(4)),
        format!("  storage.dir: expected one value {}", from_file(6)),
        "(from env BERTH__SYS__INTERVAL)".to_owned(),
        "  tls.cert: unknown option; `berth config defaults` lists all (from env BERTH__TLS__CERT)"
            .to_owned(),
        "  log.level = \"loud\": expected one of off, error".to_owned(),
        "(from flag --log-level)".to_owned(),
        "  listeners.tcp.address = \"nowhere\": expected auto, or an IP address and a port".to_owned(),
        "(from flag --set)".to_owned(),
    ];
    for part in expected {
        assert!(text.contains(&part), "missing {part:?} in\n{text}");
    }
}

#[test]
fn anonymous_beyond_loopback_must_be_asked_for() {
    for address in ["0.0.0.0:1883", "[::]:1883", "127.0.0.1:1,192.0.2.1:1883"] {
        let problems = Config::from_pairs(&[("listeners.tcp.address", address)]).unwrap_err().0;
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].key, "auth.allow_anonymous");
        for decided in [
            ("auth.allow_anonymous", "true"),
            ("auth.allow_anonymous", "false"),
            ("auth.password.file", "users"),
        ] {
            assert!(Config::from_pairs(&[("listeners.tcp.address", address), decided]).is_ok());
        }
    }
    assert!(Config::from_pairs(&[("listeners.tcp.address", "127.8.8.8:1,[::1]:1")]).is_ok());
}

#[test]
fn the_chain_has_what_is_configured_and_nothing_else() {
    let file = ("auth.password.file", "users");
    for (pairs, refused) in [
        (&[][..], false),
        (&[file], false),
        (&[("auth.chain", "password"), file], false),
        (&[("auth.chain", "password")], true),
        (&[("auth.chain", "jwt,password"), file, ("auth.jwt.key_file", "key")], false),
        (&[("auth.chain", "jwt"), file, ("auth.jwt.key_file", "key")], true),
        (&[("auth.certificate.name", "uri"), file], false),
        (&[("auth.chain", "certificate"), ("auth.certificate.name", "off")], true),
    ] {
        let problems = Config::from_pairs(pairs).err().map_or(Vec::new(), |p| p.0);
        assert_eq!(problems.iter().any(|p| p.key == "auth.chain"), refused, "{pairs:?}: {problems:?}");
    }
    assert!(Config::from_pairs(&[("auth.chain", "password,password"), file]).is_err());
    assert!(Config::from_pairs(&[("auth.chain", "pasword"), file]).is_err());
}

#[test]
fn users_are_in_etcd_only_where_somebody_says_so() {
    let etcd = ("auth.password.store", "etcd");
    let cluster = [("cluster.enabled", "true"), ("etcd.endpoints", "http://127.0.0.1:2379")];
    let of = |more: &[(&str, &str)]| Config::from_pairs(&[&cluster[..], more].concat());
    // The default opens and closes nothing by what is in etcd.
    let config = of(&[]).unwrap();
    assert_eq!((config.accounts.password.store, config.accounts.any()), (UserStore::File, false));
    // With it there are accounts, whoever is in them.
    let config = of(&[etcd]).unwrap();
    assert_eq!((config.auth.allow_anonymous, config.accounts.any()), (None, true));
    assert!(of(&[etcd, ("listeners.tcp.address", "0.0.0.0:1883")]).is_ok());
    assert!(of(&[etcd, ("auth.chain", "password")]).is_ok());
    let keys = |refused: Result<Config, Problems>| {
        refused.err().map_or(Vec::new(), |p| p.0.into_iter().map(|p| p.key).collect::<Vec<_>>())
    };
    assert_eq!(keys(of(&[etcd, ("auth.password.file", "users")])), ["auth.password.file"]);
    assert_eq!(keys(Config::from_pairs(&[etcd])), ["auth.password.store"]);
}

#[test]
fn unusable_files_are_named() {
    let missing = Sources { file: Some("/nonexistent/berth.yaml".into()), ..Sources::default() };
    let text = Config::load(&missing).unwrap_err().to_string();
    assert!(
        text.contains("cannot read the configuration file") && text.contains("/nonexistent/berth.yaml"),
        "{text}"
    );
    for bad in ["limits: [1", "just words", "- a\n- b\n", "limits:\n  max_qos: 1\n  max_qos: 2\n"] {
        let (file, sources) = file(bad);
        let text = Config::load(&sources).unwrap_err().to_string();
        assert!(text.contains("not a valid YAML file"), "{bad:?} gave {text}");
        assert!(text.contains(&file.path().display().to_string()));
    }
}

#[test]
fn wrong_values_of_every_kind() {
    let cases = [
        ("node.id", "two words"),
        ("node.id", ""),
        ("listeners.tcp.address", "127.0.0.1"),
        ("listeners.tcp.backlog", "0"),
        ("listeners.tcp.backlog", "many"),
        ("listeners.tcp.nodelay", "yes"),
        ("auth.allow_anonymous", "maybe"),
        ("http.address", "8081"),
        ("limits.max_packet_size", "512MiB"),
        ("limits.max_packet_size", "-1"),
        ("limits.receive_maximum", "65536"),
        ("limits.max_keep_alive", "1500ms"),
        ("limits.max_keep_alive", "20h"),
        ("storage.type", "disk"),
        ("storage.dir", ""),
        ("log.level", "inof"),
        ("log.level", "berth=verbose"),
        ("shutdown.timeout", "2h"),
    ];
    for (key, value) in cases {
        let problems = Config::from_pairs(&[(key, value)]).unwrap_err().0;
        assert_eq!(problems.len(), 1, "{key}={value}");
        assert_eq!((&*problems[0].key, problems[0].value.as_deref()), (key, Some(value)));
    }
}

#[test]
fn the_yaml_reference_says_the_defaults() {
    let comments_only = reference::yaml();
    let (_kept, sources) = file(&comments_only);
    let mut defaults = Config::from_pairs(&[]).unwrap();
    defaults.sources = sources.clone();
    assert_eq!(Config::load(&sources).unwrap(), defaults);

    // With the first `#` of each line gone the defaults are stated; sections must not repeat.
    let stated: String =
        comments_only.lines().map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line))).collect();
    let stated = stated.replacen(" Berth's", "# Berth's", 1).replacen(" Above", "# Above", 1);
    let (_kept, sources) = file(&stated);
    let mut loaded = Config::load(&sources).unwrap();
    // They may be written in another way, and come from the file then.
    (defaults.sources, defaults.values, defaults.blank) = (sources.clone(), loaded.values.clone(), false);
    (defaults.settings, loaded.settings) = (Vec::new(), Vec::new());
    assert_eq!(loaded, defaults, "{stated}");
}

#[test]
fn a_cluster_must_fit_together() {
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>);
    let cases: &[Case<'_>] = &[
        (&[], None),
        (&[("cluster.suback_wait", "5s")], Some("cluster.suback_wait")),
        (&[("cluster.lease", "5s")], Some("cluster.stale_after")),
        (&[("cluster.tls.ca_file", "/a"), ("cluster.tls.key_file", "/k")], Some("cluster.tls")),
        (&[("etcd.cert_file", "/c")], Some("etcd.cert_file")),
        (&[("etcd.username", "u"), ("etcd.password", "p")], None),
        (&[("etcd.username", "u"), ("etcd.password_file", "/p")], None),
        (&[("etcd.username", "u")], Some("etcd.username")),
        (&[("etcd.password", "p")], Some("etcd.username")),
        (
            &[("etcd.username", "u"), ("etcd.password", "p"), ("etcd.password_file", "/p")],
            Some("etcd.password_file"),
        ),
        (&[("storage.type", "memory")], Some("storage.type")),
        (&[("retained.max_payload", "1MiB")], None),
        (&[("retained.max_payload", "1025KiB")], Some("retained.max_payload")),
        (&[("etcd.endpoints", "127.0.0.1:2379")], Some("etcd.endpoints")),
        (&[("etcd.endpoints", "http://a:1,https://b:2")], None),
        (&[("etcd.prefix", "berth")], Some("etcd.prefix")),
        (&[("cluster.advertise_peer", "nowhere")], Some("cluster.advertise_peer")),
        (&[("cluster.advertise_peer", "berth-0.berth:7948")], None),
    ];
    for (pairs, wrong) in cases {
        let all: Vec<_> = [("cluster.enabled", "true")].iter().chain(*pairs).copied().collect();
        let outcome = Config::from_pairs(&all);
        let keys = outcome.as_ref().err().map(|p| p.0.iter().map(|p| p.key.clone()).collect::<Vec<_>>());
        assert_eq!(keys, wrong.map(|w| vec![w.to_owned()]), "{pairs:?}");
        if let Ok(config) = outcome {
            assert!(!format!("{config:?}").contains("\"p\""), "the password is shown");
        }
    }
}
