use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use tvix_node_protocol::nix::derivation::{DerivationFields, OutputKind};
use tvix_node_protocol::nix::hash::{CAHash, NixHash};

use super::*;
use crate::config::{Config, Helper, Network};

/// A server that answers each resource with the answers given for it, in turn, the last one for ever.
fn server(answers: &[(&str, &[&[u8]])]) -> String {
    server_at("127.0.0.1", answers)
}

/// As [`server`], at an address of this machine.
fn server_at(address: &str, answers: &[(&str, &[&[u8]])]) -> String {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let mut answers: BTreeMap<String, Vec<Vec<u8>>> = answers
        .iter()
        .map(|(resource, answers)| {
            let answers = answers.iter().rev().map(|answer| answer.to_vec()).collect();
            ((*resource).to_owned(), answers)
        })
        .collect();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            let resource = request.split(' ').nth(1).unwrap();
            let answers = answers.get_mut(resource).unwrap_or_else(|| panic!("{resource}"));
            let answer = if answers.len() > 1 {
                answers.pop().unwrap()
            } else {
                answers[0].clone()
            };
            stream.write_all(&answer).unwrap();
        }
    });
    base
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn derivation(variables: &[(&str, &str)], fixed: bool) -> Derivation {
    let output = match fixed {
        true => OutputKind::Fixed(CAHash::Flat(NixHash::Sha256([1; 32]))),
        false => OutputKind::InputAddressed,
    };
    let fields = DerivationFields {
        name: "x".to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), output)]),
        input_derivations: BTreeMap::new(),
        input_sources: std::collections::BTreeSet::new(),
        system: b"builtin".to_vec(),
        builder: b"builtin:fetchurl".to_vec(),
        arguments: Vec::new(),
        environment: variables
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
    };
    let made = fields.instantiate(|_| None).unwrap();
    Derivation::from_aterm_bytes(&made.aterm, "x").unwrap()
}

struct Fetched {
    result: Result<(), Cause>,
    target: PathBuf,
    told: Vec<String>,
    _scratch: Scratch,
    _place: tempfile::TempDir,
}

async fn fetch(variables: &[(&str, &str)], allowed: &[&str], most: Option<u64>) -> Fetched {
    fetch_for(variables, allowed, most, (false, false)).await
}

async fn fetch_for(
    variables: &[(&str, &str)],
    allowed: &[&str],
    most: Option<u64>,
    (another, allowed_for_others): (bool, bool),
) -> Fetched {
    let place = tempfile::tempdir().unwrap();
    let mut config = Config::new(place.path(), Helper::this_program());
    let allowed = allowed.iter().map(|range| range.parse().unwrap()).collect();
    config.network = Some(Network {
        allowed,
        allowed_for_others,
        ..Network::default()
    });
    config.ca_certificates = None;
    let path = StorePath::from_parts([1; 20], "x").unwrap();
    let scratch = Scratch::create(place.path(), &path).unwrap();
    let told = Mutex::new(Vec::new());
    let tell = |line| {
        told.lock().unwrap().push(line);
        async {}
    };
    let client = http::Client::new(&config, another).unwrap();
    let fetch = Fetch::read(&derivation(variables, true)).unwrap();
    let result = fetch.run(client, &scratch, &path, most, tell).await;
    Fetched {
        result,
        target: scratch.output(&path),
        told: told.into_inner().unwrap(),
        _scratch: scratch,
        _place: place,
    }
}

const HERE: &[&str] = &["127.0.0.1"];

#[tokio::test]
async fn a_file_is_fetched_wherever_it_has_moved() {
    let moved = b"HTTP/1.1 302 Found\r\nLocation: elsewhere?x=y\r\nContent-Length: 0\r\n\r\n";
    let chunked =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let base = server(&[("/a/file", &[moved]), ("/a/elsewhere?x=y", &[chunked])]);
    let fetched = fetch(&[("url", &format!("{base}/a/file"))], HERE, None).await;
    fetched.result.unwrap();
    assert_eq!(fs::read(&fetched.target).unwrap(), b"hello world");
    assert_eq!(fs::metadata(&fetched.target).unwrap().mode() & 0o111, 0);
    assert_eq!(fetched.told, [format!("downloading '{base}/a/file'")]);
}

#[tokio::test]
async fn what_the_owner_may_reach_others_may_not_unless_he_says_so() {
    let base = server(&[("/", &[&ok(b"of a mirror")])]);
    let variables = [("url", base.as_str())];
    let refused = fetch_for(&variables, HERE, None, (true, false)).await;
    let error = refused.result.unwrap_err().to_string();
    assert!(
        error.contains("denied to builds: the address is loopback"),
        "{error}"
    );
    fetch_for(&variables, HERE, None, (true, true))
        .await
        .result
        .unwrap();
    fetch_for(&variables, HERE, None, (false, false))
        .await
        .result
        .unwrap();
}

#[tokio::test]
async fn a_file_can_be_made_executable() {
    let base = server(&[("/", &[&ok(b"#!")])]);
    let fetched = fetch(&[("url", &base), ("executable", "1")], HERE, None).await;
    fetched.result.unwrap();
    assert_eq!(fs::metadata(&fetched.target).unwrap().mode() & 0o777, 0o755);
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_does_not_is_not() {
    let broken = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort";
    let base = server(&[("/", &[&said("503 Busy"), broken, &ok(b"whole")])]);
    let fetched = fetch(&[("url", &base)], HERE, None).await;
    fetched.result.unwrap();
    assert_eq!(fs::read(&fetched.target).unwrap(), b"whole");
    assert_eq!(fetched.told.len(), 3, "{:?}", fetched.told);

    for status in ["404 Not Found", "410 Gone", "403 Forbidden"] {
        let base = server(&[("/", &[&said(status)])]);
        let fetched = fetch(&[("url", &base)], HERE, None).await;
        let error = fetched.result.unwrap_err();
        assert!(error.to_string().contains(status), "{error}");
        assert_eq!(fetched.told.len(), 1, "{:?}", fetched.told);
        // Nobody else would get it either, and nobody else is asked.
        assert!(!error.is_transient(), "{error}");
    }
}

/// An answer without a body.
fn said(status: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn what_another_may_have_or_later_is_a_passing_failure() {
    for status in ["408 Request Timeout", "429 Too Many Requests"] {
        let base = server(&[("/", &[&said(status), &ok(b"whole")])]);
        let fetched = fetch(&[("url", &base)], HERE, None).await;
        fetched.result.unwrap();
        assert_eq!(fetched.told.len(), 2, "{:?}", fetched.told);
    }
    // What this node's owner does not allow another's may.
    let base = server(&[("/", &[&ok(b"secret")])]);
    let denied = fetch(&[("url", &base)], &[], None).await.result.unwrap_err();
    assert!(denied.is_transient(), "{denied}");
    let around = server(&[("/", &[&moved("/")])]);
    let endless = fetch(&[("url", &around)], HERE, None).await.result.unwrap_err();
    assert!(!endless.is_transient(), "{endless}");
}

#[tokio::test]
async fn addresses_that_builds_may_not_reach_are_denied_at_every_step() {
    let base = server(&[("/", &[&ok(b"secret")])]);
    let error = fetch(&[("url", &base)], &[], None)
        .await
        .result
        .unwrap_err()
        .to_string();
    assert!(error.contains("the address is loopback"), "{error}");
    // A server that may be reached must not lead to one that may not.
    for (place, why) in [
        ("http://[::1]:1/", "loopback"),
        ("http://169.254.169.254/", "link-local"),
        ("file:///etc/passwd", "not http"),
    ] {
        let answer = format!("HTTP/1.1 301 Moved\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n");
        let base = server(&[("/", &[answer.as_bytes()])]);
        let error = fetch(&[("url", &base)], HERE, None)
            .await
            .result
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_file_may_have_moved_so_often_and_no_more() {
    use crate::limits::REDIRECTS;
    let places: Vec<(String, Vec<u8>)> = (0..=REDIRECTS)
        .map(|number| (format!("/{}", number + 1), moved(&format!("/{number}"))))
        .chain([("/0".to_owned(), ok(b"at last"))])
        .collect();
    let answers: Vec<[&[u8]; 1]> = places.iter().map(|(_, answer)| [&answer[..]]).collect();
    let resources: Vec<(&str, &[&[u8]])> = places
        .iter()
        .zip(&answers)
        .map(|((resource, _), answer)| (resource.as_str(), &answer[..]))
        .collect();
    let base = server(&resources);
    let from = |number: usize| format!("{base}/{number}");
    let fetched = fetch(&[("url", &from(REDIRECTS))], HERE, None).await;
    fetched.result.unwrap();
    assert_eq!(fs::read(&fetched.target).unwrap(), b"at last");
    let refused = fetch(&[("url", &from(REDIRECTS + 1))], HERE, None).await;
    let error = refused.result.unwrap_err().to_string();
    assert!(error.contains(&format!("more than {REDIRECTS} times")), "{error}");
}

#[tokio::test]
async fn endless_answers_end() {
    let around = b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n";
    let base = server(&[("/", &[around])]);
    let error = fetch(&[("url", &base)], HERE, None)
        .await
        .result
        .unwrap_err()
        .to_string();
    assert!(error.contains("more than 10 times"), "{error}");
    let base = server(&[("/", &[&ok(&[b'x'; 5000])])]);
    let cause = fetch(&[("url", &base)], HERE, Some(4999))
        .await
        .result
        .unwrap_err();
    assert!(matches!(cause, Cause::DiskTooLarge(4999)), "{cause}");
}

/// The port of a server that goes on with each connection as long as it is asked.
fn lasting_server(body: &[u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = ok(body);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|read| read > 0)
                    && stream.write_all(&answer).is_ok()
                {}
            });
        }
    });
    port
}

fn moved(place: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn a_cache_leads_to_its_own_host_and_to_no_other_private_one() {
    let secret = server(&[("/", &[&ok(b"secret")])]);
    let secret_port = secret.rsplit_once(':').unwrap().1;
    let mut astray = vec![
        // The same machine under another name; what is asked for directly may be there.
        format!("http://localhost:{secret_port}/"),
        format!("http://127.0.0.2:{secret_port}/"),
        format!("http://[::ffff:127.0.0.1]:{secret_port}/"),
        "http://169.254.169.254/".to_owned(),
        "http://10.0.0.1/".to_owned(),
    ];
    let client = http::Client::for_caches(Arc::default()).unwrap();
    let url = |text: &str| url::Url::parse(text).unwrap();
    // A connection that was made for whoever asked directly is kept, but not for others.
    let kept = lasting_server(b"secret");
    let direct = url(&format!("http://localhost:{kept}/"));
    assert_eq!(client.get(&direct, 100).await.unwrap().unwrap(), b"secret");
    astray.push(direct.to_string());
    for place in &astray {
        let cache = server(&[("/x", &[&moved(place)])]);
        let error = client.get(&url(&format!("{cache}/x")), 100).await.unwrap_err();
        assert!(error.to_string().contains("may lead to its own host"), "{error}");
    }
    // Another port of its own host, and a detour within.
    let cache = server(&[("/x", &[&moved("/y")]), ("/y", &[&moved(&secret)])]);
    let came = client.get(&url(&format!("{cache}/x")), 100).await.unwrap();
    assert_eq!(came.unwrap(), b"secret");
    // Whoever evaluates may be led where he could go himself.
    let evaluating = http::Client::unrestricted().unwrap();
    let cache = server(&[("/x", &[&moved(&astray[0])])]);
    let came = evaluating.get(&url(&format!("{cache}/x")), 100).await.unwrap();
    assert_eq!(came.unwrap(), b"secret");
}

#[tokio::test]
async fn a_cache_that_was_led_elsewhere_does_not_come_home_again() {
    let ranges: Arc<[_]> = Arc::from(["127.0.0.2".parse().unwrap()]);
    let client = http::Client::for_caches(ranges).unwrap();
    let secret = server(&[("/", &[&ok(b"secret")])]);
    let back = server_at(
        "127.0.0.2",
        &[("/back", &[&moved(&secret)]), ("/there", &[&ok(b"there")])],
    );
    let cache = server(&[
        ("/there", &[&moved(&format!("{back}/there"))]),
        ("/back", &[&moved(&format!("{back}/back"))]),
        ("/own", &[&moved(&secret)]),
    ]);
    let get = async |resource: &str| {
        let url = url::Url::parse(&format!("{cache}{resource}")).unwrap();
        client.get(&url, 100).await
    };
    // The user lets caches lead there.
    assert_eq!(get("/there").await.unwrap().unwrap(), b"there");
    // To the cache's own host directly, and not by what somebody else says.
    assert_eq!(get("/own").await.unwrap().unwrap(), b"secret");
    let error = get("/back").await.unwrap_err().to_string();
    assert!(
        error.contains("127.0.0.1") && error.contains("a cache leads there"),
        "{error}"
    );
}

/// The name of this machine and its address, where a server can be there.
fn named_here() -> Result<(String, String), String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").map_err(|error| error.to_string())?;
    let name = name.trim();
    if name.starts_with("localhost") {
        return Err("this machine has no name of its own".to_owned());
    }
    let mut addresses =
        std::net::ToSocketAddrs::to_socket_addrs(&(name, 0)).map_err(|error| error.to_string())?;
    let address = addresses
        .find(|address| address.is_ipv4())
        .ok_or("the name of this machine has no address of IPv4")?;
    TcpListener::bind(address).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), address.ip().to_string()))
}

/// The first answer for the name may have been a public address.
#[tokio::test]
async fn a_cache_whose_name_stands_for_a_private_address_is_not_asked() {
    let (name, address) = match named_here() {
        Ok(here) => here,
        Err(reason) => {
            let test = "a_cache_whose_name_stands_for_a_private_address_is_not_asked";
            return println!("SKIPPED: {test}, because {reason}");
        }
    };
    let base = server_at(&address, &[("/x", &[&ok(b"private")])]);
    let port = base.rsplit_once(':').unwrap().1;
    let url = url::Url::parse(&format!("http://{name}:{port}/x")).unwrap();
    let client = http::Client::for_caches(Arc::default()).unwrap();
    let error = client.get(&url, 100).await.unwrap_err().to_string();
    for part in [name.as_str(), address.as_str(), "'private-caches' in config.toml"] {
        assert!(error.contains(part), "no '{part}' in: {error}");
    }
    let ranges: Arc<[_]> = Arc::from([address.parse().unwrap()]);
    let client = http::Client::for_caches(ranges).unwrap();
    assert_eq!(client.get(&url, 100).await.unwrap().unwrap(), b"private");
}

#[tokio::test]
async fn a_proxy_is_asked_for_what_it_leads_to() {
    let proxy = server(&[
        ("http://192.0.2.1:81/x?y", &[&ok(b"by proxy")]),
        ("http://192.0.2.1/astray", &[&moved("http://10.0.0.1/")]),
        ("http://192.0.2.1/inside", &[&moved("http://jenkins.invalid/")]),
        ("http://192.0.2.1/secured", &[&moved("https://jenkins.invalid/")]),
        ("http://named.invalid/", &[&ok(b"named by the user")]),
        ("jenkins.invalid:443", &[&said("403 Not for you")]),
        ("192.0.2.1:443", &[&said("403 Forbidden")]),
    ]);
    let proxies = proxies::Proxies::read(|name| (name == "all_proxy").then(|| proxy.clone()));
    let url = |text: &str| url::Url::parse(text).unwrap();
    let evaluating = http::Client::unrestricted().unwrap().asking(proxies.clone());
    let caches = http::Client::for_caches(Arc::default()).unwrap().asking(proxies);
    for client in [&evaluating, &caches] {
        let came = client.get(&url("http://192.0.2.1:81/x?y"), 100).await.unwrap();
        assert_eq!(came.unwrap(), b"by proxy");
        let error = client.get(&url("https://192.0.2.1/"), 100).await.unwrap_err();
        assert!(error.to_string().contains("403 Forbidden"), "{error}");
    }
    // What must not be asked for is not asked of a proxy either.
    let error = caches
        .get(&url("http://192.0.2.1/astray"), 100)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("a cache leads there"), "{error}");
    // What only the proxy can tell, the user may name, and a server lead to where the other end must prove its name.
    let (inside, named) = (url("http://192.0.2.1/inside"), url("http://named.invalid/"));
    let error = caches.get(&inside, 100).await.unwrap_err();
    assert!(
        error.to_string().contains("jenkins.invalid") && error.to_string().contains("over HTTPS alone"),
        "{error}"
    );
    assert_eq!(
        caches.get(&named, 100).await.unwrap().unwrap(),
        b"named by the user"
    );
    let secured = caches.get(&url("http://192.0.2.1/secured"), 100).await;
    let error = secured.unwrap_err();
    assert!(error.to_string().contains("403 Not for you"), "{error}");
    // It would not lead back to this machine.
    let here = server(&[("/", &[&ok(b"directly")])]);
    assert_eq!(
        evaluating.get(&url(&here), 100).await.unwrap().unwrap(),
        b"directly"
    );
}

/// The archive of a folder with a file, an executable, a link and a folder.
fn archive() -> Vec<u8> {
    let mut nar = Vec::new();
    let mut put = |token: &[u8]| {
        nar.extend((token.len() as u64).to_le_bytes());
        nar.extend(token);
        nar.resize(nar.len().next_multiple_of(8), 0);
    };
    for token in [
        &b"nix-archive-1"[..],
        b"(",
        b"type",
        b"directory",
        b"entry",
        b"(",
        b"name",
        b"a",
        b"node",
        b"(",
        b"type",
        b"regular",
        b"contents",
        b"text",
        b")",
        b")",
        b"entry",
        b"(",
        b"name",
        b"b",
        b"node",
        b"(",
        b"type",
        b"regular",
        b"executable",
        b"",
        b"contents",
        b"run",
        b")",
        b")",
        b"entry",
        b"(",
        b"name",
        b"c",
        b"node",
        b"(",
        b"type",
        b"directory",
        b")",
        b")",
        b"entry",
        b"(",
        b"name",
        b"d",
        b"node",
        b"(",
        b"type",
        b"symlink",
        b"target",
        b"../../..",
        b")",
        b")",
        b")",
    ] {
        put(token);
    }
    nar
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

#[tokio::test]
async fn archives_are_unpacked() {
    let compressed = xz(&archive());
    let base = server(&[("/x.nar", &[&ok(&archive())]), ("/x.nar.xz", &[&ok(&compressed)])]);
    for name in ["x.nar", "x.nar.xz"] {
        let fetched = fetch(&[("url", &format!("{base}/{name}")), ("unpack", "1")], HERE, None).await;
        fetched.result.unwrap();
        let target = fetched.target;
        assert_eq!(fs::read(target.join("a")).unwrap(), b"text");
        assert_eq!(fs::metadata(target.join("a")).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(target.join("b")).unwrap().mode() & 0o777, 0o755);
        assert!(target.join("c").is_dir());
        assert_eq!(fs::read_link(target.join("d")).unwrap(), Path::new("../../.."));
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn archives_that_are_none_or_too_large_are_refused() {
    let bomb = xz(&[0; 1 << 20]);
    let mut cut = archive();
    cut.truncate(cut.len() - 8);
    let base = server(&[
        ("/bomb.xz", &[&ok(&bomb)]),
        ("/cut", &[&ok(&cut)]),
        ("/no.xz", &[&ok(b"not xz")]),
    ]);
    for (name, most) in [("bomb.xz", bomb.len() as u64), ("cut", 10_000), ("no.xz", 10_000)] {
        let variables = [("url", format!("{base}/{name}")), ("unpack", "1".to_owned())];
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let error = fetch(&variables, HERE, Some(most))
            .await
            .result
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot be unpacked"), "{name}: {error}");
    }
}

#[test]
fn derivations_that_cannot_be_fetched_are_refused_by_name() {
    let refused = |variables: &[(&str, &str)], fixed| {
        Fetch::read(&derivation(variables, fixed))
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&[("url", "http://h/")], false).contains("fixed-output"));
    assert!(refused(&[], true).contains("'url'"));
    for url in ["ftp://h/x", "file:///etc/passwd", "s3://bucket/x", "no url"] {
        assert!(refused(&[("url", url)], true).contains("'url'"), "{url}");
    }
    Fetch::read(&derivation(
        &[("__json", r#"{"url":"https://h/x","executable":true}"#)],
        true,
    ))
    .unwrap();
}

#[tokio::test]
async fn a_server_that_says_no_more_is_not_waited_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = url::Url::parse(&format!("http://{}/x", listener.local_addr().unwrap())).unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            // Who has given up already is gone.
            let _read = stream.read(&mut request);
            let _written = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
            // Neither more nor the end.
            open.push(stream);
        }
    });
    let place = tempfile::tempdir().unwrap();
    let client = http::Client::unrestricted().unwrap().patient(Some(0));
    let told = Mutex::new(0);
    let tell = |_| {
        *told.lock().unwrap() += 1;
        async {}
    };
    let error = client
        .download(&url, &place.path().join("x"), 1000, None, &tell)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nothing came for 0 s"), "{error}");
    assert!(*told.lock().unwrap() > 0, "it is tried again");
}
