//! What builds reach of the network.

use std::io::{Read, Write};
use std::net::TcpListener;

use tvix_node_builder::{BuildSpec, Network};
use tvix_node_protocol::nix::derivation::OutputKind;
use tvix_node_protocol::nix::hash::{CAHash, NixHash};

use crate::stage::{OUT, Stage, fields, spec};

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
            "abstract: connection refused"
        ]
    );
    let interfaces = stage.play(fixed(&["place"])).await.log;
    assert!(
        interfaces.contains(&"interfaces [\"lo\"]".to_owned()),
        "{interfaces:?}"
    );
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
    assert!(!log.iter().any(|line| line.starts_with("resolv.conf")));
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
