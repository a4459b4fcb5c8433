//! Fetchers in expressions, and expressions that are archives elsewhere.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Machine, sandbox_works};

/// A server that has one file, and counts how often it was asked. It ends with the test's process.
fn server(body: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    server_that(body, || ())
}

/// A server that does something before it answers.
fn server_that(body: Vec<u8>, wait: impl Fn() + Send + 'static) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/x.tar", listener.local_addr().expect("an address"));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            let head = BufReader::new(&stream).lines();
            let lines = head
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .count();
            assert!(lines > 0, "a request has lines");
            count.fetch_add(1, Ordering::SeqCst);
            wait();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let answer = [head.as_bytes(), &body].concat();
            (&stream).write_all(&answer).expect("the answer is taken");
        }
    });
    (url, asked)
}

/// An archive of a folder with a `default.nix`.
fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in [
        ("top/default.nix", "{ x ? 1 }: { value = x + 1; }"),
        ("top/text", "hi"),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, text.as_bytes())
            .expect("memory takes it");
    }
    builder.into_inner().expect("memory takes it")
}

#[test]
fn expressions_and_the_search_path_may_be_archives() {
    let machine = Machine::new();
    let (url, asked) = server(archive());
    let value = machine.run(&["eval", "-f", &url, "-A", "value", "--argstr", "y", "unused"]);
    assert_eq!(value.ok(), "2");
    let entry = format!("x={url}");
    assert_eq!(
        machine
            .run(&["eval", "-I", &entry, "-f", "<x>", "-A", "value"])
            .ok(),
        "2"
    );
    assert_eq!(
        machine
            .run(&["eval", "-I", &entry, "-E", "builtins.readFile <x/text>"])
            .ok(),
        "\"hi\""
    );
    let count = asked.load(Ordering::SeqCst);
    assert_eq!(
        count, 1,
        "what was fetched counts as current for an hour, for every command"
    );
    let file = machine.folder().join("x.tar");
    std::fs::write(&file, archive()).expect("a file");
    let local = format!("file://{}", file.display());
    assert_eq!(machine.run(&["eval", "-f", &local, "-A", "value"]).ok(), "2");
}

/// While two targets wait for a server, others of the same command are evaluated and built; what both want is fetched
/// once.
#[test]
fn other_targets_go_on_while_one_fetches() {
    if !sandbox_works("other_targets_go_on_while_one_fetches") {
        return;
    }
    let machine = Machine::new();
    let (open, gate) = std::sync::mpsc::channel();
    let (url, asked) = server_that(archive(), move || gate.recv().expect("the test opens it"));
    machine.expression(&format!(
        r#"let waits = name: build name {{ text = builtins.readFile "${{fetchTarball "{url}"}}/text"; }} "write $out $text";
        in {{ a = waits "a"; b = waits "b"; other = build "other" {{ }} "write $out other"; }}"#
    ));
    let mut running = machine.start(&[
        "build",
        "-A",
        "a",
        "-A",
        "b",
        "-A",
        "other",
        "--no-out-link",
        "--log-format",
        "internal-json",
    ]);
    loop {
        let line = running.until("");
        assert!(
            !line.contains("evaluation-ended"),
            "nothing was waited for: {line}"
        );
        if line.contains("build-finished") && line.contains("-other") {
            break;
        }
    }
    open.send(()).expect("the server waits");
    let finished = running.finish();
    assert_eq!(finished.ok().lines().count(), 3, "{}", finished.stderr);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_pinned_is_checked_and_fetched_once() {
    let machine = Machine::new();
    let (url, asked) = server(archive());
    let fetch = |hash: &str| {
        let expression =
            format!("import (fetchTarball {{ url = \"{url}\"; sha256 = \"{hash}\"; }}) {{ x = 2; }}");
        machine.run(&["eval", "-E", &format!("({expression}).value")])
    };
    let wrong = "0".repeat(64);
    let refused = fetch(&wrong);
    refused.failed(
        3,
        &[
            "hash mismatch in the tree fetched from",
            &url,
            "specified: sha256-AAAA",
            "got:",
        ],
    );
    let found = refused
        .stderr
        .lines()
        .find_map(|line| line.trim().strip_prefix("got:"));
    let right = found.expect("what it is").trim().to_owned();
    assert_eq!(fetch(&right).ok(), "3");
    let count = asked.load(Ordering::SeqCst);
    assert_eq!(fetch(&right).ok(), "3");
    assert_eq!(asked.load(Ordering::SeqCst), count, "it is there");
    // In a pure evaluation nothing else is fetched.
    let pure = machine.run(&["eval", "--pure-eval", "-E", &format!("fetchTarball \"{url}\"")]);
    pure.failed(
        3,
        &["in pure evaluation mode, 'fetchTarball' requires a 'sha256' argument"],
    );
    let restricted = machine.run(&[
        "eval",
        "--restrict-eval",
        "-E",
        &format!("fetchTarball \"{url}\""),
    ]);
    restricted.failed(3, &["is forbidden in restricted mode"]);
}
