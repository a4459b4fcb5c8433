//! Both halves over a real socket.

use std::io::Write as _;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tvix_node_protocol::control::{AddRoot, CONTROL_VERSION, FailureKind, SourceQuery, WorkerMessage};

use super::super::client::ControlClient;
use super::super::client_error::ClientError;
use super::super::testing::{FOREVER, Up, ended, message, open, path, source};
use super::*;
use crate::limits::{BATCH_BYTES, PATH_QUERY_BYTES};

#[tokio::test]
async fn every_request_has_its_answer() {
    let mut up = Up::patient();
    let client = up.client().await;
    let (session, _events) = up.session(&client).await;
    let batch = [
        WorkerMessage::Derivation {
            path: path("a.drv"),
            aterm: vec![0xff; 300_000],
        },
        WorkerMessage::EvaluationEnded,
    ];
    client.send_batch(session, &batch).await.unwrap();
    up.called("batch 1 of 2").await;
    let query = SourceQuery {
        fingerprint: "f".to_owned(),
    };
    let answer = client.find_source(session, &query).await.unwrap();
    up.called("find 1 f").await;
    assert_eq!(answer.path, Some(path("source")));
    let asked = vec![path("b"), path("a")];
    let infos = client.path_infos(asked.clone()).await.unwrap();
    assert_eq!(infos.into_iter().map(|info| info.path).collect::<Vec<_>>(), asked);
    client.hold_paths(session, asked).await.unwrap();
    up.called("hold 1 2").await;
    assert_eq!(client.why(path("a")).await.unwrap().summary, "built here");
    let root = AddRoot {
        link: "/result".to_owned(),
        path: path("a"),
    };
    client.add_root(&root).await.unwrap();
    up.called("root /result").await;
    let mut log = client.log(path("a")).await.unwrap();
    let mut size = 0;
    while let Some(chunk) = log.chunk().await.unwrap() {
        size += chunk.len();
    }
    assert_eq!(size, 1_000_000);
}

#[tokio::test]
async fn a_command_counts_until_it_has_ended_whatever_it_asks() {
    let mut up = Up::patient();
    assert_eq!(*up.connected.borrow(), 0);
    let client = up.client().await;
    assert_eq!(*up.connected.borrow(), 1);
    let archive = client.archive(path("a")).await.unwrap();
    up.called("archive of a").await;
    assert!(*up.connected.borrow() > 0);
    drop((archive, client));
    let mut connected = up.connected.clone();
    connected.wait_for(|count| *count == 0).await.unwrap();
}

#[tokio::test]
async fn archives_and_exports_go_both_ways_and_a_torn_one_is_no_whole_one() {
    let mut up = Up::patient();
    let client = up.client().await;
    let mut archive = client.archive(path("a")).await.unwrap();
    up.called("archive of a").await;
    assert_eq!(archive.chunk().await.unwrap().unwrap(), "archive");
    assert_eq!(archive.chunk().await.unwrap(), None);
    let torn = match client.export(vec![path("a"), path("b")]).await {
        // So early that not even its beginning has come.
        Err(error) => error,
        Ok(mut export) => loop {
            match export.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream that broke off looks whole"),
                Err(error) => break error,
            }
        },
    };
    up.called("export of 2").await;
    assert!(matches!(torn, ClientError::Broken { .. }), "{torn}");
    let mut import = client.import();
    import.send("12345".into()).await.unwrap();
    assert_eq!(import.finish().await.unwrap()[0].nar_size, 5);
}

#[tokio::test]
async fn events_arrive_one_by_one_while_the_session_goes_on() {
    let mut up = Up::patient();
    let client = up.client().await;
    let (session, events) = up.session(&client).await;
    let mut stream = client.events(session).await.unwrap();
    up.called("events 1").await;
    for at in 0..3 {
        events.send(message(at)).await.unwrap();
        assert_eq!(stream.next().await.unwrap(), Some(message(at)));
    }
    events.send(ended()).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(ended()));
    assert_eq!(stream.next().await.unwrap(), None);
    // The session lives until the command has made its roots and lets go.
    let root = AddRoot {
        link: "/result".to_owned(),
        path: path("a"),
    };
    client.add_root(&root).await.unwrap();
    up.called("root /result").await;
    drop(stream);
    up.called("close 1").await;
}

#[tokio::test]
async fn hanging_up_closes_the_session() {
    let mut up = Up::patient();
    let client = up.client().await;
    let (session, events) = up.session(&client).await;
    let mut stream = client.events(session).await.unwrap();
    up.called("events 1").await;
    events.send(message(0)).await.unwrap();
    stream.next().await.unwrap();
    drop(stream);
    up.called("close 1").await;
    events.closed().await;
}

#[tokio::test]
async fn a_killed_curl_closes_the_session() {
    let mut up = Up::patient();
    let client = up.client().await;
    let (_, events) = up.session(&client).await;
    let mut stream = up.raw().await;
    stream
        .write_all(b"GET /v1/sessions/1/events HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    up.called("events 1").await;
    events.send(message(5)).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("\"at\":5") {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).await.unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert!(seen.starts_with("HTTP/1.1 200 OK\r\n"), "{seen}");
    assert!(
        seen.contains(&format!("tvix-node-control: {CONTROL_VERSION}\r\n")),
        "{seen}"
    );
    drop(stream);
    up.called("close 1").await;
}

#[tokio::test]
async fn a_session_that_nobody_watches_is_closed() {
    let mut up = Up::new(Settings {
        owner: own_user(),
        unwatched_session: Duration::ZERO,
        shutdown: FOREVER,
        connections: 16,
    });
    let client = up.client().await;
    client.open_session(&open(CONTROL_VERSION)).await.unwrap();
    up.called("open Build").await;
    up.called("close 1").await;
}

#[tokio::test]
async fn events_that_stop_too_early_are_an_error() {
    let mut up = Up::patient();
    let client = up.client().await;
    let (session, events) = up.session(&client).await;
    let mut stream = client.events(session).await.unwrap();
    events.send(message(0)).await.unwrap();
    drop(events);
    assert_eq!(stream.next().await.unwrap(), Some(message(0)));
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, ClientError::EventsCut(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_is_written_by_a_thread_that_blocks() {
    let mut up = Up::patient();
    let client = up.client().await;
    let size = 3 * crate::limits::UPLOAD_CHUNK + 5;
    let writer = client.clone();
    let added = std::thread::spawn(move || {
        let mut upload = writer.add_source(1, source("src"));
        for byte in 0..size {
            upload.write_all(&[byte as u8]).unwrap();
        }
        writer.runtime().block_on(upload.finish())
    });
    let info = tokio::task::spawn_blocking(|| added.join().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((info.path, info.nar_size), (path("src"), size as u64));
    up.called("archive begins").await;
    up.called("source 1 src").await;
}

#[tokio::test]
async fn an_archive_that_is_given_up_is_not_taken_for_complete() {
    let mut up = Up::patient();
    let client = up.client().await;
    let mut upload = client.add_source(1, source("src"));
    upload.send(bytes::Bytes::from_static(b"half")).await.unwrap();
    up.called("archive begins").await;
    drop(upload);
    up.called("torn source").await;
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_an_archive_has_its_reason() {
    let mut up = Up::patient();
    let client = up.client().await;
    let mut upload = client.add_source(1, source("refused"));
    let piece = bytes::Bytes::from(vec![0; 1 << 20]);
    // It takes what is on its way, then no more.
    while upload.send(piece.clone()).await.is_ok() {}
    let error = upload.finish().await.unwrap_err();
    match &error {
        ClientError::Refused(failure, _) => assert_eq!(failure.kind, FailureKind::NoSpace),
        _ => panic!("{error}"),
    }
    assert_eq!(error.to_string(), "the source 'refused' does not fit");
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), "the disk is full");
}

#[tokio::test]
async fn a_call_goes_on_when_its_client_hangs_up() {
    let mut up = Up::patient();
    let client = up.client().await;
    let (open_gate, gate) = oneshot::channel();
    *up.notes.gate.lock().unwrap() = Some(gate);
    let batch = tokio::spawn(async move { client.send_batch(1, &[]).await });
    up.called("batch 1 of 0").await;
    batch.abort();
    assert!(batch.await.unwrap_err().is_cancelled());
    open_gate.send(()).unwrap();
    up.called("batch taken").await;
}

#[tokio::test]
async fn other_versions_are_refused_except_for_down() {
    let mut up = Up::patient();
    let client = up.client().await;
    let error = client.open_session(&open(99)).await.unwrap_err().to_string();
    assert!(
        error.contains("version 99") && error.contains(&format!("version {CONTROL_VERSION}")),
        "{error}"
    );
    assert!(error.contains("tvix-node down"), "{error}");
    let answer = up
        .exchange(b"GET /v1/status HTTP/1.1\r\nhost: x\r\ntvix-node-control: 98\r\nconnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    assert!(
        answer.contains("version 98") && answer.contains("\"kind\":\"version\""),
        "{answer}"
    );
    let answer = up
        .exchange(b"POST /v1/down HTTP/1.1\r\nhost: x\r\ntvix-node-control: 98\r\nconnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    up.called("stop").await;
    up.server.await.unwrap();
}

#[tokio::test]
async fn a_node_of_another_version_is_named_by_the_client() {
    let home = tempfile::tempdir().unwrap();
    let socket = ControlSocket::bind(home.path()).unwrap();
    let answers: [&[u8]; 2] = [
        b"HTTP/1.1 200 OK\r\ntvix-node-control: 98\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    ];
    let expected = ["version 98", "(none, it does not say)"];
    for (answer, expected) in answers.into_iter().zip(expected) {
        let serve = async {
            let (mut stream, _) = socket.listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            stream.write_all(answer).await.unwrap();
        };
        let (client, ()) = tokio::join!(ControlClient::connect(home.path()), serve);
        let error = client.unwrap_err();
        assert!(matches!(error, ClientError::Version { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn bodies_that_are_too_large_are_refused() {
    let up = Up::patient();
    let limit = crate::limits::JSON_BYTES;
    // Announced: refused before a byte of it is read.
    for (place, limit) in [
        ("roots", limit),
        ("paths", PATH_QUERY_BYTES),
        ("store", PATH_QUERY_BYTES),
        ("export", PATH_QUERY_BYTES),
        ("sessions/1/batch", BATCH_BYTES),
    ] {
        let head = format!(
            "POST /v1/{place} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            limit + 1
        );
        let answer = up.exchange(head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{place}: {answer}");
        assert!(answer.contains(&format!(" {limit} bytes")), "{place}: {answer}");
    }
    // Not announced: refused when it grows too large.
    let mut request =
        b"POST /v1/roots HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            .to_vec();
    request.extend(format!("{:x}\r\n", limit + 1).bytes());
    request.extend(vec![b' '; limit + 1]);
    request.extend(b"\r\n0\r\n\r\n");
    let answer = up.exchange(&request).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn headers_are_bounded() {
    let up = Up::patient();
    let many: String = (0..crate::limits::HEADERS + 1)
        .map(|number| format!("x-{number}: y\r\n"))
        .collect();
    let long = format!("x: {}\r\n", "y".repeat(crate::limits::HEADER_BYTES));
    for headers in [many, long] {
        let request = format!("GET /v1/status HTTP/1.1\r\n{headers}\r\n");
        let mut stream = up.raw().await;
        // The server may close before everything is written.
        let _closed_early = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        assert!(
            answer.starts_with(b"HTTP/1.1 431 "),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}

#[tokio::test]
async fn what_is_not_http_or_torn_harms_nobody() {
    let mut up = Up::patient();
    let torn: [&[u8]; 4] = [
        b"",
        b"\x00\x01\x02\r\n\r\n",
        b"POST /v1/roots HTTP/1.1\r\nhost",
        b"POST /v1/roots HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{\"link\":",
    ];
    for bytes in torn {
        let mut stream = up.raw().await;
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{bytes:?}");
    }
    up.client().await;
}

#[tokio::test]
async fn what_cannot_be_understood_is_refused_with_a_failure() {
    let up = Up::patient();
    let cases: [(&str, &str, &str); 6] = [
        ("GET /v1/nothing", "", "404"),
        ("DELETE /v1/status", "", "405"),
        ("GET /v1/log?path=/nix/store/none", "", "400"),
        ("POST /v1/roots", "{\"link\":\"/x\"}", "400"),
        (
            "POST /v1/roots",
            "{\"link\":\"/x\",\"path\":\"../../etc\"}",
            "400",
        ),
        ("POST /v1/sessions/1/batch", "\u{1}", "400"),
    ];
    for (line, body, status) in cases {
        let request = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = up.exchange(request.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{line}: {answer}"
        );
        assert!(answer.contains("{\"error\":\""), "{line}: {answer}");
    }
}

#[tokio::test]
async fn a_panic_is_an_answer_and_the_node_goes_on() {
    let mut up = Up::patient();
    let client = up.client().await;
    let error = client.log(path("panics")).await.unwrap_err();
    assert!(error.to_string().contains("bug"), "{error}");
    assert!(client.status().await.is_ok());
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let mut up = Up::new(Settings {
        owner: own_user(),
        unwatched_session: FOREVER,
        shutdown: FOREVER,
        connections: 1,
    });
    let client = up.client().await;
    let error = ControlClient::connect(up.home.path()).await.unwrap_err();
    // The answer may come before the request is sent; either way nobody hangs.
    match error {
        ClientError::Refused(failure, _) => assert_eq!(failure.kind, FailureKind::Unavailable),
        ClientError::Broken { .. } => {}
        error => panic!("{error}"),
    }
    assert!(client.status().await.is_ok());
}

#[tokio::test]
async fn stopping_ends_sessions_and_removes_the_socket() {
    let mut up = Up::patient();
    let client = up.client().await;
    let (session, events) = up.session(&client).await;
    let mut stream = client.events(session).await.unwrap();
    up.called("events 1").await;
    ControlClient::down(up.home.path()).await.unwrap();
    up.called("stop").await;
    // What a node does with its sessions when it is told to stop:
    events.send(ended()).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(ended()));
    drop(stream);
    up.called("close 1").await;
    up.server.await.unwrap();
    let error = ControlClient::connect(up.home.path()).await.unwrap_err();
    assert!(matches!(error, ClientError::NoNode { .. }), "{error}");
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_client_that_sleeps() {
    let mut up = Up::new(Settings {
        owner: own_user(),
        unwatched_session: FOREVER,
        shutdown: Duration::ZERO,
        connections: 16,
    });
    let client = up.client().await;
    let (session, _events) = up.session(&client).await;
    let _stream = client.events(session).await.unwrap();
    up.called("events 1").await;
    ControlClient::down(up.home.path()).await.unwrap();
    up.called("stop").await;
    up.called("close 1").await;
    up.server.await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_that_the_node_closed_is_replaced() {
    let home = tempfile::tempdir().unwrap();
    let socket = ControlSocket::bind(home.path()).unwrap();
    let node = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut stream, _) = socket.listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            let answer = format!("HTTP/1.1 204 No Content\r\ntvix-node-control: {CONTROL_VERSION}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let client = ControlClient::unconnected(home.path()).unwrap();
    let root = AddRoot {
        link: "/x".to_owned(),
        path: path("a"),
    };
    client.add_root(&root).await.unwrap();
    client.add_root(&root).await.unwrap();
    node.await.unwrap();
}

#[tokio::test]
async fn another_user_is_turned_away() {
    if own_user() == 0 {
        println!("SKIPPED: another_user_is_turned_away because root may command every node");
        return;
    }
    let up = Up::new(Settings {
        owner: own_user() + 1,
        ..Settings::default()
    });
    let error = ControlClient::connect(up.home.path()).await.unwrap_err();
    match error {
        ClientError::Refused(failure, _) => assert_eq!(failure.kind, FailureKind::Forbidden),
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_named_with_its_process() {
    let home = tempfile::tempdir().unwrap();
    // It listens, and that is all.
    let _socket = ControlSocket::bind(home.path()).unwrap();
    let asked = ControlClient::connect_within(home.path(), Duration::from_millis(10)).await;
    let (error, process) = (asked.unwrap_err().to_string(), std::process::id());
    assert!(error.contains("does not answer"), "{error}");
    assert!(error.contains(&format!("kill -KILL {process}")), "{error}");
}
