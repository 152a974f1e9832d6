//! The configuration as a user sees it: defaults, all mistakes at once, no secrets in any output.

use std::io::Write as _;

use net::tls::Secrets;

use super::*;

/// Loads `pairs`. A node with others trusts all hosts unless the test protects the peer port.
fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let given = |words: &[&str]| pairs.iter().any(|(key, _)| words.iter().any(|word| key.contains(word)));
    let trusting = given(&["INITIAL_NODES", "JOIN"]) && !given(&["PEER_SECRET", "PEER_TLS", "INSECURE"]);
    let trust = trusting.then_some(("CHAT_INSECURE_PEERS", "1"));
    load_as_given(&pairs.iter().copied().chain(trust).collect::<Vec<_>>())
}

fn load_as_given(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::load(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
}

/// The keys with mistakes.
fn wrong(pairs: &[(&str, &str)]) -> Vec<String> {
    load(pairs).expect_err("must be refused").0.into_iter().map(|mistake| mistake.key).collect()
}

#[test]
fn defaults_make_a_cluster_of_one() {
    let config = load(&[("CHAT_NAME", "n1"), ("PATH", "/bin"), ("OTEL_SERVICE_NAME", "x")]).unwrap();
    let values: Vec<String> = config.effective().iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        values,
        [
            "CHAT_NAME=n1",
            "CHAT_LISTEN=[::]:50051",
            "CHAT_PEER_LISTEN=127.0.0.1:50052",
            "CHAT_WEB_LISTEN=[::]:8080",
            "CHAT_METRICS_LISTEN=[::]:9464",
            "CHAT_ADVERTISE=n1:50051",
            "CHAT_PEER_ADVERTISE=127.0.0.1:50052",
            "CHAT_WEB_ADVERTISE=n1:8080",
            "CHAT_WEB_HOSTS=",
            "CHAT_HSTS_SECONDS=2592000",
            "CHAT_DATA_DIR=data",
            "CHAT_INITIAL_NODES=n1=127.0.0.1:50052",
            "CHAT_JOIN=",
            "CHAT_EXPECTED_NODES=",
            "CHAT_JOIN_TOKEN=",
            "CHAT_JOIN_TOKEN_FILE=",
            "CHAT_PEER_SECRET=",
            "CHAT_PEER_SECRET_FILE=",
            "CHAT_INSECURE_PEERS=0",
            "CHAT_TLS_CERT=",
            "CHAT_TLS_KEY=",
            "CHAT_PEER_TLS_CERT=",
            "CHAT_PEER_TLS_KEY=",
            "CHAT_PEER_TLS_CA=",
            "CHAT_HEARTBEAT_MS=100",
            "CHAT_ELECTION_MIN_MS=300",
            "CHAT_ELECTION_MAX_MS=600",
            "CHAT_SESSION_LIFETIME_HOURS=720",
            "CHAT_SESSION_IDLE_HOURS=0",
            "CHAT_REGISTRATIONS_PER_ADDRESS=200",
            "CHAT_REGISTRATIONS_PER_HOUR=2000",
            "CHAT_LOGIN_ATTEMPTS_PER_ADDRESS=600",
            "CHAT_LOG_LEVEL=info",
            "CHAT_HEARTBEAT_LOG_LEVEL=warn",
            "CHAT_LOG_FORMAT=text",
            "CHAT_DRAIN_TIMEOUT_MS=10000",
            "CHAT_SNAPSHOT_LOG_MB=256",
            "CHAT_DIGEST_INTERVAL_S=30",
            "CHAT_SCRUB_INTERVAL_S=86400",
            "CHAT_CACHE_MB=64",
            "CHAT_LOG_ENTRIES_KEPT=20000",
            "CHAT_LOG_MB_KEPT=512",
            "CHAT_ERASE_AFTER_S=86400",
            "CHAT_TRUSTED_PROXIES=",
            "CHAT_PROXY_PROTOCOL=0",
            "CHAT_REFLECTION=1",
            "CHAT_ACCOUNT_MESSAGES_PER_S=2000",
            "CHAT_ACCOUNT_KIB_PER_S=4096",
            "CHAT_ACCOUNT_CHANGES_PER_S=5000",
            "CHAT_ACCOUNT_MESSAGES_MAX=2000000",
            "CHAT_ACCOUNT_MIB_MAX=1024",
            "CHAT_SPACE_RESERVE_MB=256",
            "CHAT_HASH_PARALLELISM=2",
            "CHAT_WORKER_THREADS=0",
            "CHAT_EXIT_WITH_PARENT=0",
        ]
    );
    let open: Vec<_> = config.warnings.iter().map(|warning| warning.split(',').next().unwrap()).collect();
    let listeners = ["LISTEN is [::]:50051", "WEB_LISTEN is [::]:8080", "METRICS_LISTEN is [::]:9464"];
    assert_eq!(open, listeners.map(|listener| format!("CHAT_{listener}")));
}

/// The warnings, except those about open listeners.
fn odd(config: &Config) -> Vec<&String> {
    config.warnings.iter().filter(|warning| !warning.contains(", without TLS: ")).collect()
}

#[test]
fn open_listeners_are_warned_of_once_each() {
    let near = ["LISTEN", "WEB_LISTEN", "METRICS_LISTEN"].map(|key| format!("CHAT_{key}"));
    let near: Vec<(&str, &str)> =
        near.iter().map(String::as_str).zip(["127.0.0.1:1", "[::1]:2", "127.0.0.9:3"]).collect();
    assert!(load(&[&[("CHAT_NAME", "n1")], &near[..]].concat()).unwrap().warnings.is_empty());
}

#[test]
fn the_host_names_a_node_without_a_name() {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(load(&[]).unwrap().name, host.trim());
}

#[test]
fn effective_values_can_be_given_back() {
    let given = [
        ("CHAT_NAME", "n2"),
        ("CHAT_LISTEN", "127.0.0.1:7001"),
        ("CHAT_INITIAL_NODES", "n1=a:1,n2=b:2,n3=[::1]:3"),
        ("CHAT_LOG_FORMAT", "json"),
        ("CHAT_LOG_LEVEL", "DEBUG"),
        ("CHAT_EXIT_WITH_PARENT", "1"),
    ];
    let config = load(&given).unwrap();
    let again = Config::load(config.effective()).unwrap();
    assert_eq!(config.effective(), again.effective());
    assert_eq!(again.advertise, "127.0.0.1:7001", "loopback is advertised as it is");
    assert_eq!(again.peer_advertise, "b:2", "this node's entry in the list");
    assert_eq!(again.initial_nodes[2], InitialNode { name: "n3".into(), peer_address: "[::1]:3".into() });
    assert_eq!(again.log_level, tracing::Level::DEBUG);
    assert!(again.exit_with_parent);
}

#[test]
fn every_mistake_is_reported_at_once() {
    let given = [
        ("CHAT_NAME", "a b"),
        ("CHAT_LISTEN", "localhost"),
        ("CHAT_PEER_LISTEN", "0.0.0.0:0"),
        ("CHAT_WEB_LISTEN", "0.0.0.0:99999"),
        ("CHAT_METRICS_LISTEN", ":9464"),
        ("CHAT_ADVERTISE", "n1"),
        ("CHAT_PEER_ADVERTISE", "n1:0"),
        ("CHAT_WEB_ADVERTISE", "http://n1:80"),
        ("CHAT_WEB_HOSTS", "https://chat.example.org"),
        ("CHAT_HSTS_SECONDS", "forever"),
        ("CHAT_DATA_DIR", "da\u{FFFD}ta"),
        ("CHAT_INITIAL_NODES", "n1"),
        ("CHAT_PEER_SECRET", "short"),
        ("CHAT_HEARTBEAT_MS", "fast"),
        ("CHAT_ELECTION_MIN_MS", "-1"),
        ("CHAT_ELECTION_MAX_MS", "1e3"),
        ("CHAT_SESSION_LIFETIME_HOURS", "0"),
        ("CHAT_LOG_LEVEL", "loud"),
        ("CHAT_HEARTBEAT_LOG_LEVEL", "2"),
        ("CHAT_LOG_FORMAT", "xml"),
        ("CHAT_DRAIN_TIMEOUT_MS", "10s"),
        ("CHAT_SNAPSHOT_LOG_MB", "99999999999999999999"),
        ("CHAT_DIGEST_INTERVAL_S", "0"),
        ("CHAT_TRUSTED_PROXIES", "10.0.0.0/33"),
        ("CHAT_PROXY_PROTOCOL", "2"),
        ("CHAT_REFLECTION", "on"),
        ("CHAT_HASH_PARALLELISM", "0"),
        ("CHAT_EXIT_WITH_PARENT", "yes"),
    ];
    let mut reported = wrong(&given);
    let mut expected: Vec<String> = given.iter().map(|(key, _)| (*key).to_owned()).collect();
    reported.sort();
    expected.sort();
    assert_eq!(reported, expected);
}

#[test]
fn web_hosts_are_hosts() {
    let hosts = |text| load(&[("CHAT_NAME", "n1"), ("CHAT_WEB_HOSTS", text)]).map(|config| config.web_hosts);
    let good = "Chat.example.org, *.example.org,192.0.2.1:8443,[2001:db8::1],[2001:db8::1]:1,localhost";
    let expected =
        ["chat.example.org", "*.example.org", "192.0.2.1:8443", "[2001:db8::1]", "[2001:db8::1]:1", "localhost"];
    assert_eq!(hosts(good).unwrap(), expected);
    for bad in ["*", "*.", "a*.b", "a,,b", "a b", "http://a", "a/b", "a:0", "a:", "[::1", "*.1.2.3.4", "*.[::1]", "a@b"]
    {
        assert!(hosts(bad).is_err(), "{bad}");
    }
    assert!(hosts(&vec!["a"; 65].join(",")).is_err());
}

#[test]
fn proxies_are_addresses_and_networks() {
    let load = |networks, protocol| {
        let given = [("CHAT_NAME", "n1"), ("CHAT_TRUSTED_PROXIES", networks), ("CHAT_PROXY_PROTOCOL", protocol)];
        load(&given).map(|config| config.proxies)
    };
    let proxies = load("10.0.0.7, 192.0.2.0/24,2001:db8::/32", "0").unwrap();
    let trusted = ["10.0.0.7", "::ffff:10.0.0.7", "192.0.2.99", "2001:db8::1", "10.0.0.8", "::1"];
    assert_eq!(trusted.map(|ip| proxies.trusts(ip.parse().unwrap())), [true, true, true, true, false, false]);
    assert!(load("10.0.0.7", "1").unwrap().speak_first);
    assert!(!load("", "0").unwrap().trusts("127.0.0.1".parse().unwrap()));
    for (networks, protocol) in [("proxy.example.org", "0"), ("10.0.0.0/33", "0"), ("10.0.0.7,", "0"), ("", "1")] {
        assert!(load(networks, protocol).is_err(), "{networks}");
    }
}

#[test]
fn a_mistake_tells_key_value_and_what_is_expected() {
    let error = load(&[("CHAT_NAME", "n1"), ("CHAT_LISTEN", "here"), ("CHAT_LOG_FORMAT", "xml")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "2 mistakes in the configuration:\n  \
         CHAT_LISTEN: given \"here\", expected an IP address and a port other than 0, such as [::]:50051 or \
         127.0.0.1:50051\n  \
         CHAT_LOG_FORMAT: given \"xml\", expected text or json"
    );
    assert_eq!(ConfigErrors::EXIT_CODE, 64);
}

#[test]
fn times_have_to_fit_each_other() {
    let times = |heartbeat, min, max| {
        load(&[("CHAT_HEARTBEAT_MS", heartbeat), ("CHAT_ELECTION_MIN_MS", min), ("CHAT_ELECTION_MAX_MS", max)])
            .map(|_| ())
            .map_err(|errors| errors.0.into_iter().map(|mistake| mistake.key).collect::<Vec<_>>())
    };
    assert_eq!(times("150", "300", "301"), Ok(()));
    assert_eq!(times("151", "300", "301"), Err(vec!["CHAT_ELECTION_MIN_MS".to_owned()]));
    assert_eq!(times("150", "300", "300"), Err(vec!["CHAT_ELECTION_MAX_MS".to_owned()]));
    assert_eq!(
        times("200", "300", "299"),
        Err(vec!["CHAT_ELECTION_MIN_MS".to_owned(), "CHAT_ELECTION_MAX_MS".to_owned()])
    );
}

#[test]
fn initial_nodes_are_unique_and_contain_this_node() {
    let nodes = |list| load(&[("CHAT_NAME", "n1"), ("CHAT_INITIAL_NODES", list)]);
    assert_eq!(nodes("n1=a:1,n2=b:1,n3=c:1").unwrap().initial_nodes.len(), 3);
    assert!(odd(&nodes("n1=a:1, n2=b:1, n3=c:1").unwrap()).is_empty());
    assert!(odd(&nodes("n1=a:1,n2=b:1").unwrap())[0].contains("odd number"));
    for bad in ["n2=b:1", "n1=a:1,n1=b:1", "n1=a:1,n2=a:1", "n1=a:1,", "n1=a:1,n2", "n1=a", "=a:1", "n1=:1", "n1=a:+1"]
    {
        let mistakes = nodes(bad).expect_err(bad).0;
        assert!(mistakes.iter().all(|mistake| mistake.key == "CHAT_INITIAL_NODES"), "{bad}: {mistakes:?}");
    }
    let many: Vec<String> = (1..=16).map(|i| format!("n{i}=h{i}:1")).collect();
    assert!(nodes(&many.join(",")).is_err());
}

#[test]
fn listeners_do_not_share_a_port() {
    assert_eq!(wrong(&[("CHAT_PEER_LISTEN", "127.0.0.1:50051")]), ["CHAT_PEER_LISTEN"]);
    let apart = [("CHAT_LISTEN", "127.0.0.1:5"), ("CHAT_PEER_LISTEN", "127.0.0.2:5")];
    assert!(load(&apart).is_ok(), "two addresses may use the same port");
}

#[test]
fn a_secret_is_never_shown() {
    let secret = "correct-horse-battery";
    let config = load(&[("CHAT_PEER_SECRET", secret)]).unwrap();
    assert_eq!(config.peer_secrets, Secrets::parse(secret));
    let shown = format!("{config:?} {:?}", config.effective());
    assert!(!shown.contains(secret), "{shown}");
    assert!(shown.contains("(hidden)"));
    let error = load(&[("CHAT_PEER_SECRET", "too-short")]).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("too-short"));
}

#[test]
fn a_secret_comes_from_a_file_too() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"from-a-mounted-file\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = load(&[("CHAT_PEER_SECRET_FILE", path)]).unwrap();
    assert_eq!(config.peer_secrets, Secrets::parse("from-a-mounted-file"));
    assert_eq!(config.peer_secret_file.as_deref(), Some(file.path()));
    let both = [("CHAT_PEER_SECRET_FILE", path), ("CHAT_PEER_SECRET", "correct-horse-battery")];
    assert_eq!(wrong(&both), ["CHAT_PEER_SECRET_FILE"]);
    assert_eq!(wrong(&[("CHAT_PEER_SECRET_FILE", "/nowhere/at/all")]), ["CHAT_PEER_SECRET_FILE"]);
    assert_eq!(wrong(&[("CHAT_PEER_SECRET_FILE", "/dev/zero")]), ["CHAT_PEER_SECRET_FILE"]);
}

#[test]
fn a_node_that_others_reach_is_protected() {
    let three = ("CHAT_INITIAL_NODES", "n1=n1:1,n2=n2:1,n3=n3:1");
    let name = ("CHAT_NAME", "n1");
    let unprotected = |pairs: &[(&str, &str)]| {
        let mistakes = load_as_given(&[&[name], pairs].concat()).map(|_| ()).map_err(|errors| errors.to_string());
        mistakes.is_err_and(|text| text.contains("CHAT_INSECURE_PEERS=1") && text.contains("chatd secret"))
    };
    assert!(unprotected(&[three]));
    assert!(unprotected(&[("CHAT_JOIN", "n1:1")]));
    assert!(unprotected(&[("CHAT_PEER_LISTEN", "0.0.0.0:1")]));
    assert!(unprotected(&[("CHAT_INITIAL_NODES", "n1=n1:1")]), "it listens beyond loopback");
    for protected in [
        &[][..],
        &[("CHAT_PEER_LISTEN", "[::1]:1")],
        &[three, ("CHAT_PEER_SECRET", "correct-horse-battery")],
        &[three, ("CHAT_PEER_SECRET", "correct-horse-battery the-secret-before-it")],
        &[three, ("CHAT_INSECURE_PEERS", "1")],
    ] {
        assert!(load_as_given(&[&[name], protected].concat()).is_ok(), "{protected:?}");
    }
    let listen = |pairs: &[(&str, &str)]| load(pairs).unwrap().peer_listen.to_string();
    assert_eq!(listen(&[name]), "127.0.0.1:50052");
    assert_eq!(listen(&[name, three]), "[::]:50052");
    let dir = tempfile::tempdir().unwrap();
    let pairs = certificates(dir.path(), &["n1"]);
    let config = load_as_given(&with(&pairs, &[name, three])).unwrap();
    assert!(config.peer_tls.is_some());
    let both = [name, three, ("CHAT_PEER_SECRET", "correct-horse-battery")];
    assert_eq!(wrong(&with(&pairs, &both)), ["CHAT_PEER_SECRET"]);
}

#[test]
fn what_a_joining_node_and_those_that_admit_it_are_given() {
    let token = "0123456789abcdef".repeat(4);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{token}").unwrap();
    let path = file.path().to_str().unwrap();
    for given in [("CHAT_JOIN_TOKEN", token.as_str()), ("CHAT_JOIN_TOKEN_FILE", path)] {
        let config = load(&[("CHAT_JOIN", "n1:1"), given]).unwrap();
        assert_eq!(config.join_token.as_ref().map(JoinToken::expose), Some(token.as_str()));
        assert!(!format!("{config:?} {:?}", config.effective()).contains(&token));
    }
    let errors = load(&[("CHAT_JOIN", "n1:1"), ("CHAT_JOIN_TOKEN", &token[1..])]).unwrap_err().to_string();
    assert!(errors.contains("CHAT_JOIN_TOKEN") && !errors.contains(&token[1..]), "{errors}");
    assert_eq!(wrong(&[("CHAT_JOIN_TOKEN", &token), ("CHAT_JOIN_TOKEN_FILE", path)]), ["CHAT_JOIN_TOKEN_FILE"]);
    let names = load(&[("CHAT_EXPECTED_NODES", "n6, n7,chat-*")]).unwrap().expected_nodes;
    assert_eq!(names, ["n6", "n7", "chat-*"]);
    assert_eq!(wrong(&[("CHAT_EXPECTED_NODES", "n6,,n7")]), ["CHAT_EXPECTED_NODES"]);
    assert_eq!(wrong(&[("CHAT_EXPECTED_NODES", "*6")]), ["CHAT_EXPECTED_NODES"]);
}

#[test]
fn empty_counts_as_not_given() {
    let config = load(&[("CHAT_NAME", "n1"), ("CHAT_PEER_SECRET", ""), ("CHAT_INITIAL_NODES", "")]).unwrap();
    assert!(config.peer_secrets.is_none());
    assert_eq!(config.initial_nodes.len(), 1);
}

#[test]
fn unknown_keys_are_warned_of_unless_others_made_them() {
    let warned = |key: &str, value: &str| !odd(&load(&[(key, value)]).unwrap()).is_empty();
    for (key, value) in [
        ("CHAT_NODES", "n1:50051"),
        ("CHAT_SERVICE_HOST", "10.0.0.1"),
        ("CHAT_SERVICE_PORT", "50051"),
        ("CHAT_SERVICE_PORT_GRPC", "50051"),
        ("CHAT_PORT", "tcp://10.0.0.1:50051"),
        ("CHAT_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("CHAT_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("CHAT_PORT_50051_TCP_PROTO", "tcp"),
        ("CHAT_WEB_SERVICE_HOST", "10.0.0.1"),
        ("CHAT_WEB_PORT_8080_TCP_PORT", "8080"),
    ] {
        assert!(!warned(key, value), "{key}");
    }
    for (key, value) in [
        ("CHAT_LISTN", "0.0.0.0:1"),
        ("CHAT_PORT", "50051"),
        ("CHAT_name", "n1"),
        ("CHAT_REPORT_1_TCP", "x"),
        ("CHAT_PORT_1_TCP_X", "x"),
    ] {
        assert!(warned(key, value), "{key}");
    }
}

#[test]
fn every_key_is_shown_and_explained() {
    let effective: Vec<String> = load(&[]).unwrap().effective().into_iter().map(|(key, _)| key).collect();
    let table: Vec<String> = keys::KEYS.iter().map(|key| format!("CHAT_{}", key.name)).collect();
    assert_eq!(effective, table);
    let help = keys::help();
    for key in keys::KEYS {
        assert!(help.contains(&format!("CHAT_{} <{}>", key.name, key.unit)), "{}", key.name);
        assert!(help.contains(key.meaning));
    }
}

#[test]
fn the_documentation_has_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let before = text.split("| key |").next().unwrap();
    let expected = format!("{before}{}", keys::markdown());
    if std::env::var_os("UPDATE").is_some() {
        return std::fs::write(path, &expected).unwrap();
    }
    assert!(text == expected, "the table has changed: run this test with UPDATE=1");
}

#[test]
fn a_node_that_comes_later_is_not_one_of_the_first() {
    let five = "n1=a:1,n2=b:1,n3=c:1,n4=d:1,n5=e:1";
    assert_eq!(wrong(&[("CHAT_NAME", "n6"), ("CHAT_INITIAL_NODES", five)]), ["CHAT_INITIAL_NODES"]);
    let later = load(&[("CHAT_NAME", "n6"), ("CHAT_INITIAL_NODES", five), ("CHAT_JOIN", "a:1, b:1")]).unwrap();
    assert_eq!(later.join, Some(Join::Ask(vec!["a:1".into(), "b:1".into()])));
    assert_eq!(later.initial_nodes.len(), 5);
    // All nodes may share one environment, so the first ones may have JOIN set, too.
    let first = load(&[("CHAT_NAME", "n2"), ("CHAT_INITIAL_NODES", five), ("CHAT_JOIN", "a:1, b:1")]).unwrap();
    assert_eq!((first.initial_nodes.len(), &first.peer_advertise[..], odd(&first).len()), (5, "b:1", 0));
    let invited = load(&[("CHAT_NAME", "n6"), ("CHAT_JOIN", "invitation")]).unwrap();
    assert_eq!((invited.join, invited.initial_nodes), (Some(Join::Invitation), vec![]));
    for bad in ["a", "a:1,", "a:1,b", "invite"] {
        assert_eq!(wrong(&[("CHAT_NAME", "n6"), ("CHAT_JOIN", bad)]), ["CHAT_JOIN"], "{bad}");
    }
}

/// Certificates for the names of a node, as the keys and values that use them.
fn certificates(dir: &std::path::Path, hosts: &[&str]) -> Vec<(String, String)> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let files = net::tls::issue::Authority::open(dir).unwrap().issue("n1", &hosts, 7).unwrap();
    let authority = files.authority.unwrap();
    [
        ("CHAT_TLS_CERT", &files.certificate),
        ("CHAT_TLS_KEY", &files.key),
        ("CHAT_PEER_TLS_CERT", &files.certificate),
        ("CHAT_PEER_TLS_KEY", &files.key),
        ("CHAT_PEER_TLS_CA", &authority),
    ]
    .map(|(key, path)| (key.to_owned(), path.display().to_string()))
    .to_vec()
}

fn with<'a>(pairs: &'a [(String, String)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let given = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    // A key that is given again, or as empty, replaces the previous value.
    given.filter(|(key, _)| !more.iter().any(|(other, _)| other == key)).chain(more.iter().copied()).collect()
}

#[test]
fn certificates_that_fit_are_taken_and_shown_by_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = certificates(dir.path(), &["n1"]);
    let config = load(&with(&pairs, &[("CHAT_NAME", "n1")])).unwrap();
    assert!(config.tls.is_some() && config.peer_tls.is_some() && odd(&config).is_empty(), "{:?}", config.warnings);
    for pair in &pairs {
        assert!(config.effective().contains(pair), "{pair:?}");
    }
    // Clients may use another name. The other nodes may not.
    let config = load(&with(&pairs, &[("CHAT_NAME", "n1"), ("CHAT_ADVERTISE", "chat.example.org:50051")])).unwrap();
    assert!(odd(&config)[0].contains("CHAT_TLS_CERT does not fit CHAT_ADVERTISE"), "{:?}", config.warnings);
}

#[test]
fn certificates_that_do_not_fit_are_named() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pairs = certificates(dir.path(), &["n1"]);
    let theirs = certificates(other.path(), &["n1"]);
    let wrong_with = |more: &[(&str, &str)]| wrong(&with(&pairs, &with(&[], more)));
    let name = ("CHAT_NAME", "n1");
    assert_eq!(wrong_with(&[name, ("CHAT_TLS_KEY", "")]), ["CHAT_TLS_KEY"]);
    assert_eq!(
        wrong_with(&[name, ("CHAT_PEER_TLS_KEY", ""), ("CHAT_PEER_TLS_CERT", "")]),
        ["CHAT_PEER_TLS_CERT", "CHAT_PEER_TLS_KEY"]
    );
    assert_eq!(wrong_with(&[name, ("CHAT_TLS_KEY", "/nowhere")]), ["CHAT_TLS_KEY"]);
    assert_eq!(wrong_with(&[name, ("CHAT_PEER_TLS_CA", "/etc/hostname")]), ["CHAT_PEER_TLS_CA"]);
    assert_eq!(wrong_with(&[name, ("CHAT_TLS_KEY", &theirs[1].1)]), ["CHAT_TLS_CERT"], "not the key of it");
    assert_eq!(wrong_with(&[name, ("CHAT_PEER_TLS_CA", &theirs[4].1)]), ["CHAT_PEER_TLS_CERT"], "not vouched for");
    let mistakes = load(&with(&pairs, &[("CHAT_NAME", "n2")])).unwrap_err();
    assert!(mistakes.to_string().contains(r#"CHAT_PEER_TLS_CERT: given"#), "{mistakes}");
    assert!(mistakes.to_string().contains(r#"good for "n2", the host of CHAT_PEER_ADVERTISE"#), "{mistakes}");
}
