use std::sync::Mutex;

use super::*;

/// A server that answers every request with what it got.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut got = vec![0; 4096];
                let length = stream.read(&mut got).await.unwrap();
                let answer = [b"HTTP/1.1 200 OK\r\n\r\n", &got[..length]].concat();
                stream.write_all(&answer).await.unwrap();
            });
        }
    });
    port
}

/// Sends something to a proxy and reads the answer to its end.
async fn ask(allowed: &[&str], request: String) -> (String, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let allowed = allowed.iter().map(|range| range.parse().unwrap()).collect();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = {
        let told = told.clone();
        move |denied| {
            told.lock().unwrap().push(denied);
            async {}
        }
    };
    let client = async {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let answer = tokio::select! {
        () = serve(listener, allowed, tell) => unreachable!("it serves for ever"),
        answer = client => answer,
    };
    let told = told.lock().unwrap().clone();
    (answer, told)
}

#[tokio::test]
async fn a_request_is_passed_on() {
    let port = echo().await;
    let request = format!("GET http://127.0.0.1:{port}/x HTTP/1.1\r\nHost: h\r\n\r\n");
    let (answer, told) = ask(&["127.0.0.1"], request).await;
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    );
    assert!(told.is_empty());
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways() {
    let port = echo().await;
    // The first bytes may come with the request.
    let request = format!("CONNECT localhost:{port} HTTP/1.1\r\n\r\nhello");
    let (answer, _) = ask(&["127.0.0.1", "::1"], request).await;
    assert_eq!(
        answer,
        "HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello"
    );
}

#[tokio::test]
async fn the_machine_itself_is_denied_by_any_name() {
    let port = echo().await;
    for host in [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "127.1",
        "2130706433",
        "0x7f.1",
    ] {
        let (answer, told) = ask(&[], format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n")).await;
        assert!(
            answer.starts_with("HTTP/1.1 403 ") || answer.starts_with("HTTP/1.1 502 "),
            "{host}: {answer}"
        );
        assert_eq!(
            told.len(),
            usize::from(answer.starts_with("HTTP/1.1 403 ")),
            "{host}"
        );
    }
    let (_, told) = ask(&[], format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\n")).await;
    assert_eq!(
        told,
        ["127.0.0.1 (127.0.0.1) is denied to builds: the address is loopback"]
    );
}

#[tokio::test]
async fn what_is_not_understood_is_answered() {
    let (answer, _) = ask(&[], "GET ftp://example.org/ HTTP/1.1\r\n\r\n".to_owned()).await;
    assert!(
        answer.starts_with("HTTP/1.1 501 ") && answer.contains("HTTP and HTTPS only"),
        "{answer}"
    );
    let (answer, _) = ask(&[], "nonsense\r\n\r\n".to_owned()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let (answer, _) = ask(
        &[],
        "x".repeat(PROXY_CONNECTIONS + crate::limits::PROXY_HEAD_BYTES),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[test]
fn programs_are_told_in_both_spellings() {
    let variables: std::collections::BTreeMap<_, _> = environment().collect();
    assert_eq!(variables["https_proxy"], "http://127.0.0.1:3128");
    assert_eq!(variables["HTTPS_PROXY"], variables["all_proxy"]);
    assert!(variables["no_proxy"].contains("127.0.0.1"));
}
