//! What builds reach of the network.

use std::io::{Read, Write};
use std::net::TcpListener;

use tvix_node_builder::{BuildSpec, Config, Network};
use tvix_node_protocol::nix::derivation::OutputKind;
use tvix_node_protocol::nix::hash::{CAHash, NixHash};

use crate::stage::{OUT, Stage, fields, skipped, spec};

/// A server on the machine's loopback interface, which answers every request.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/file", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 1024];
            let read = stream.read(&mut request).expect("a request");
            assert!(request[..read].starts_with(b"GET /file HTTP/1.1\r\n"));
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\nthe content")
                .expect("a client");
        }
    });
    url
}

/// Whether builds can have a network interface here.
fn has_tunnel() -> bool {
    let mut device = std::fs::OpenOptions::new();
    device.read(true).write(true).open("/dev/net/tun").is_ok()
}

fn network(tunnel: bool, allowed: &[String]) -> Network {
    let mut network = Network::default();
    network.tunnel = tunnel;
    network.allowed = allowed
        .iter()
        .map(|range| range.parse().expect("a range"))
        .collect();
    network
}

/// An address of this machine that is not loopback, where it has one. No packet is sent for it.
fn own_address() -> Option<std::net::Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.254:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    }
}

/// A server that says back what it is told, at an address of this machine.
fn talker(address: std::net::Ipv4Addr) -> String {
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let place = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("text");
            stream
                .write_all(format!("you said {text}").as_bytes())
                .expect("a client");
        }
    });
    place
}

#[tokio::test]
async fn a_fixed_output_build_reaches_what_no_proxy_leads_to() {
    let Some(address) = own_address().filter(|_| has_tunnel()) else {
        let reason = "this user cannot open /dev/net/tun, or this machine has no address but loopback";
        return skipped("the user-mode network", &reason);
    };
    let place = talker(address);
    let open = |config: &mut Config| config.network = Some(network(true, &[address.to_string()]));
    let Some(stage) = Stage::with(open).await else {
        return;
    };
    let log = stage.play(fixed(&["talk", &place])).await.log;
    assert_eq!(log, ["you said hello"]);
    // The machine itself, its network and what clouds offer are denied.
    let Some(stage) = Stage::new().await else { return };
    for place in [
        place.as_str(),
        "169.254.169.254:80",
        "10.0.2.2:22",
        "192.168.0.1:22",
    ] {
        let played = stage.play(fixed(&["talk", place])).await;
        let log = played.log.join("\n");
        assert!(
            log.contains(&format!("tvix-node: {place} is denied to builds")),
            "{log}"
        );
        assert!(log.contains("talk: connection refused"), "{log}");
    }
}

#[tokio::test]
async fn a_fixed_output_build_says_something_in_datagrams() {
    let Some(address) = own_address().filter(|_| has_tunnel()) else {
        let reason = "this user cannot open /dev/net/tun, or this machine has no address but loopback";
        return skipped("UDP through the user-mode network", &reason);
    };
    let socket = std::net::UdpSocket::bind((address, 0)).expect("a port");
    let place = socket.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let answer = [b"you said ", &bytes[..length]].concat();
            socket.send_to(&answer, from).expect("a client");
        }
    });
    let open = |config: &mut Config| config.network = Some(network(true, &[address.to_string()]));
    let Some(stage) = Stage::with(open).await else {
        return;
    };
    let log = stage.play(fixed(&["exchange", &place])).await.log;
    assert_eq!(log, ["you said hello"]);
    let Some(stage) = Stage::new().await else { return };
    for place in [place.as_str(), "169.254.169.254:123"] {
        let log = stage.play(fixed(&["exchange", place])).await.log.join("\n");
        assert!(
            log.contains(&format!("tvix-node: {place} is denied to builds")),
            "{log}"
        );
        // The kernel of the build is told at once.
        assert!(log.contains("exchange: connection refused"), "{log}");
    }
}

#[tokio::test]
async fn a_fixed_output_build_has_ipv6_where_it_may_reach_some_of_it() {
    let has_ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
    if !has_tunnel() || !has_ipv6 {
        let reason = "this user cannot open /dev/net/tun, or this kernel has no IPv6";
        return skipped("IPv6 in the user-mode network", &reason);
    }
    let open = |config: &mut Config| config.network = Some(network(true, &["fd00:1::/64".to_owned()]));
    let Some(stage) = Stage::with(open).await else {
        return;
    };
    let interfaces = stage
        .play(fixed(&["read", "/proc/net/if_inet6"]))
        .await
        .log
        .join("\n");
    assert!(
        interfaces.contains("fd7476786e6f00000000000000000100"),
        "{interfaces}"
    );
    for place in ["[fd00:2::1]:80", "[fe80::1]:80", "[::ffff:127.0.0.1]:80"] {
        for act in ["talk", "exchange"] {
            let log = stage.play(fixed(&[act, place])).await.log.join("\n");
            assert!(!log.contains("you said"), "{log}");
            if place.starts_with("[fd00") {
                assert!(
                    log.contains(&format!("tvix-node: {place} is denied to builds")),
                    "{log}"
                );
                assert!(log.contains(&format!("{act}: connection refused")), "{log}");
            }
        }
    }
}

#[tokio::test]
async fn without_an_interface_a_failure_says_what_could_not_be_reached() {
    let close = |config: &mut Config| config.network = Some(network(false, &[]));
    let Some(stage) = Stage::with(close).await else {
        return;
    };
    let log = stage.play(fixed(&["talk", "192.0.2.1:80"])).await.log;
    assert_eq!(log, ["talk: network unreachable"]);
    if has_tunnel() {
        return skipped("the note on a missing /dev/net/tun", &"this user can open it");
    }
    let Some(stage) = Stage::new().await else { return };
    let played = stage.play(fixed(&["exit", "1"])).await;
    let log = played.log.join("\n");
    assert!(log.contains("/dev/net/tun cannot be used"), "{log}");
    assert!(log.contains("Let this user open it"), "{log}");
    // Others have no network at all, and nothing is said of it.
    let log = stage.act(&["exit", "1"]).await.log;
    assert!(log.is_empty(), "{log:?}");
}

fn fixed(arguments: &[&str]) -> BuildSpec {
    let mut fields = fields(arguments);
    let ca = CAHash::Flat(NixHash::Sha256([9; 32]));
    fields.outputs.insert("out".to_owned(), OutputKind::Fixed(ca));
    spec(fields)
}

#[tokio::test]
async fn a_fixed_output_build_fetches_through_the_proxy() {
    let url = server();
    let allow = |config: &mut tvix_node_builder::Config| {
        let mut network = Network::default();
        network.allowed.push("127.0.0.1".parse().unwrap());
        config.network = Some(network);
    };
    let Some(stage) = Stage::with(allow).await else {
        return;
    };
    let built = stage.play(fixed(&["fetch", &url, OUT])).await.built();
    let answer = std::fs::read_to_string(&built.outputs["out"]).unwrap();
    assert!(answer.ends_with("the content"), "{answer}");
}

#[tokio::test]
async fn what_the_owner_s_builds_may_reach_those_of_others_may_not_unless_he_says_so() {
    let url = server();
    let place = own_address().filter(|_| has_tunnel()).map(talker);
    let mut allowed = vec!["127.0.0.1".to_owned()];
    allowed.extend(place.iter().cloned());
    for for_others in [false, true] {
        let open = |config: &mut Config| {
            let mut network = network(true, &allowed);
            network.allowed_for_others = for_others;
            config.network = Some(network);
        };
        let Some(stage) = Stage::with(open).await else {
            return;
        };
        let mut fetching = fixed(&["fetch", &url, OUT]);
        fetching.for_another = true;
        let built = stage.play(fetching).await.built();
        let answer = std::fs::read_to_string(&built.outputs["out"]).unwrap();
        assert_eq!(answer.ends_with("the content"), for_others, "{answer}");
        assert_eq!(answer.starts_with("HTTP/1.1 403 "), !for_others, "{answer}");
        let Some(place) = &place else { continue };
        let mut talking = fixed(&["talk", place]);
        talking.for_another = true;
        let log = stage.play(talking).await.log;
        let wanted = match for_others {
            true => "you said hello",
            false => "talk: connection refused",
        };
        assert!(log.contains(&wanted.to_owned()), "{log:?}");
    }
    if place.is_none() {
        skipped(
            "the same over an interface",
            &"this user cannot open /dev/net/tun, or has no address",
        );
    }
}

#[tokio::test]
async fn the_proxy_does_not_lead_to_the_machine() {
    let url = server();
    let Some(stage) = Stage::new().await else { return };
    let played = stage.play(fixed(&["fetch", &url, OUT])).await;
    assert!(
        played
            .log
            .iter()
            .any(|line| line.contains("denied to builds: the address is loopback")),
        "{:?}",
        played.log
    );
    let answer = std::fs::read_to_string(&played.built().outputs["out"]).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn a_fixed_output_build_reaches_the_machine_no_other_way() {
    let Some(stage) = Stage::new().await else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let log = stage.play(fixed(&["connect", &port, "nobody"])).await.log;
    assert_eq!(
        log,
        [
            "tcp: connection refused",
            "tcp6: connection refused",
            "abstract: connection refused",
            "vsock: uncategorized error",
            "io_uring: unsupported"
        ]
    );
    for tunnel in [false, true] {
        let with = |config: &mut Config| config.network = Some(network(tunnel, &[]));
        let Some(stage) = Stage::with(with).await else {
            return;
        };
        let log = stage.play(fixed(&["place"])).await.log;
        let wanted = match tunnel && has_tunnel() {
            true => r#"interfaces ["lo", "tun0"]"#,
            false => r#"interfaces ["lo"]"#,
        };
        assert!(log.contains(&wanted.to_owned()), "{log:?}");
    }
}

#[tokio::test]
async fn other_builds_have_no_proxy() {
    let Some(stage) = Stage::new().await else { return };
    let log = stage.look(&["connect", "3128", "nobody"]).await;
    assert_eq!(log[0], "tcp: connection refused");
    let environment = stage.look(&["environment"]).await;
    assert!(
        !environment.iter().any(|line| line.contains("proxy")),
        "{environment:?}"
    );
    let closed = Stage::with(|config| config.network = None).await;
    let Some(closed) = closed else { return };
    let log = closed.play(fixed(&["connect", "3128", "nobody"])).await.log;
    assert_eq!(log[0], "tcp: connection refused");
    let environment = closed.play(fixed(&["environment"])).await.log;
    assert!(
        !environment.iter().any(|line| line.contains("proxy")),
        "{environment:?}"
    );
}

#[tokio::test]
async fn fixed_output_builds_find_what_they_need_to_resolve_and_trust() {
    let Some(stage) = Stage::new().await else { return };
    let log = stage.play(fixed(&["list", "/etc"])).await.log;
    assert!(log.contains(&"nsswitch.conf -0644".to_owned()), "{log:?}");
    let names = log.iter().any(|line| line.starts_with("resolv.conf"));
    assert_eq!(names, has_tunnel(), "{log:?}");
    let certificates = stage.builder.config().ca_certificates.clone();
    if let Some(certificates) = certificates {
        let log = stage
            .play(fixed(&["read", "/etc/ssl/certs/ca-certificates.crt"]))
            .await
            .log;
        assert_eq!(
            log.join("\n").trim(),
            std::fs::read_to_string(certificates).unwrap().trim()
        );
    }
}
