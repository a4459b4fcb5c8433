use std::fmt::Debug;
use std::task::Poll;

use futures::{AsyncReadExt, AsyncWriteExt, poll};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{Signer, SigningKey};
use rustls::version::TLS12;
use rustls::{CipherSuite, SignatureAlgorithm, SignatureScheme};

use super::pipe::Pipe;
use super::*;
use crate::limits::{TLS_INCOMING, TLS_OUTGOING, TLS_RECORD};

pub(super) fn identity(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).unwrap()
}

pub(super) fn node(seed: u8) -> Tls {
    Tls::new(&identity(seed)).unwrap()
}

pub(super) fn peer(seed: u8) -> PeerId {
    identity(seed).public().to_peer_id()
}

type Ended = Result<(PeerId, TlsStream<Pipe>), HandshakeError>;

/// Both ends of a handshake, the dialler's first.
async fn shake_over(dialler: &Tls, listener: &Tls, (one, other): (Pipe, Pipe)) -> (Ended, Ended) {
    futures::join!(
        dialler.clone().upgrade_outbound(one, PROTOCOL),
        listener.clone().upgrade_inbound(other, PROTOCOL),
    )
}

async fn shake(dialler: &Tls, listener: &Tls) -> (Ended, Ended) {
    shake_over(dialler, listener, Pipe::pair(1 << 20, 1 << 20)).await
}

/// The two ends of an encrypted connection.
async fn connected(pipe: (Pipe, Pipe)) -> (TlsStream<Pipe>, TlsStream<Pipe>) {
    let (one, other) = shake_over(&node(1), &node(2), pipe).await;
    (one.unwrap().1, other.unwrap().1)
}

/// Why this end had no connection: what TLS says, where it does.
fn refusal(ended: Ended) -> String {
    match ended {
        Ok((peer, _)) => panic!("{peer} was taken"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn both_ends_know_who_the_other_is() {
    let (one, other) = shake(&node(1), &node(2)).await;
    assert_eq!((one.unwrap().0, other.unwrap().0), (peer(2), peer(1)));
}

#[tokio::test]
async fn it_speaks_with_libp2ps_own_tls() {
    let plain = libp2p::tls::Config::new(&identity(3)).unwrap();
    for is_dialler in [true, false] {
        let (one, other) = Pipe::pair(1 << 20, 1 << 20);
        let (ours, theirs) = if is_dialler {
            let theirs = plain.clone().upgrade_inbound(other, PROTOCOL);
            futures::join!(node(1).upgrade_outbound(one, PROTOCOL), theirs)
        } else {
            let theirs = plain.clone().upgrade_outbound(other, PROTOCOL);
            futures::join!(node(1).upgrade_inbound(one, PROTOCOL), theirs)
        };
        let ((ours_sees, mut ours), (theirs_sees, mut theirs)) = (ours.unwrap(), theirs.unwrap());
        assert_eq!((ours_sees, theirs_sees), (peer(3), peer(1)));
        let mut heard = [0; 5];
        ours.write_all(b"hello").await.unwrap();
        ours.flush().await.unwrap();
        theirs.read_exact(&mut heard).await.unwrap();
        theirs.write_all(&heard).await.unwrap();
        theirs.close().await.unwrap();
        let mut echo = vec![];
        ours.read_to_end(&mut echo).await.unwrap();
        assert_eq!(echo, b"hello");
    }
}

#[tokio::test]
async fn the_cipher_is_aes_where_both_ends_have_instructions_for_it() {
    for (dialler, listener) in [(true, true), (true, false), (false, true), (false, false)] {
        let tls = |seed, aes| Tls::with_aes(&identity(seed), aes).unwrap();
        let (one, other) = shake(&tls(1, dialler), &tls(2, listener)).await;
        let expected = if dialler && listener {
            CipherSuite::TLS13_AES_128_GCM_SHA256
        } else {
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        };
        for ended in [one, other] {
            let stream = ended.unwrap().1;
            let cipher = stream.state().negotiated_cipher_suite().unwrap().suite();
            assert_eq!(cipher, expected, "{dialler}, {listener}");
        }
    }
}

/// A certificate, and its key.
pub(super) type Certificate = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// A certificate that shows the public key of one node with a signature of another's key, and is valid until a year.
pub(super) fn certificate(shown: &Keypair, signing: &Keypair, until: i32) -> Certificate {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let signed = [b"libp2p-tls-handshake:".as_slice(), &key.public_key_der()].concat();
    let octets = |bytes: Vec<u8>| [vec![4, bytes.len().try_into().unwrap()], bytes].concat();
    let content = [
        octets(shown.public().encode_protobuf()),
        octets(signing.sign(&signed).unwrap()),
    ]
    .concat();
    let content = [vec![0x30, content.len().try_into().unwrap()], content].concat();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.not_before = rcgen::date_time_ymd(1975, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(until, 1, 1);
    let oid = [1, 3, 6, 1, 4, 1, 53594, 1, 1];
    let extension = rcgen::CustomExtension::from_oid_content(&oid, content);
    parameters.custom_extensions.push(extension);
    let made = parameters.self_signed(&key).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    (made.into(), key.into())
}

/// Shows what it has, if anything.
#[derive(Debug)]
struct Shows(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// An end that shows these certificates, with the key of the first.
fn showing(certificates: Vec<Certificate>) -> Tls {
    let key = certificates
        .first()
        .map(|(_, key)| aws_lc_rs::sign::any_ecdsa_type(key).unwrap());
    let chain: Vec<_> = certificates.into_iter().map(|(shown, _)| shown).collect();
    showing_with(key.map(|key| CertifiedKey::new(chain, key)))
}

/// An end that shows this, where it is anything; else it shows nothing when it dials.
fn showing_with(shown: Option<CertifiedKey>) -> Tls {
    let shown = shown.map(Arc::new);
    let mut tls = node(1);
    let mut client = ClientConfig::clone(&tls.client);
    client.client_auth_cert_resolver = Arc::new(Shows(shown.clone()));
    tls.client = Arc::new(client);
    if let Some(shown) = shown {
        let mut server = ServerConfig::clone(&tls.server);
        server.cert_resolver = Arc::new(SingleCertAndKey::from(shown));
        tls.server = Arc::new(server);
    }
    tls
}

/// Both a dialler and a listener like this are refused, and why.
async fn is_refused(stranger: &Tls, because: impl Debug + AsRef<str>) {
    let (dialled, by_listener) = shake(stranger, &node(2)).await;
    let (by_dialler, listening) = shake(&node(2), stranger).await;
    for refused in [refusal(by_listener), refusal(by_dialler)] {
        assert!(refused.contains(because.as_ref()), "{refused} is not {because:?}");
    }
    // Who listens learns of it in the handshake, who dials when it reads.
    refusal(listening);
    let (_, mut dialled) = dialled.unwrap();
    assert!(dialled.read(&mut [0; 1]).await.is_err());
}

#[tokio::test]
async fn a_certificate_made_as_the_specification_says_is_taken() {
    let like_ours = showing(vec![certificate(&identity(5), &identity(5), 4096)]);
    let (one, other) = shake(&like_ours, &node(2)).await;
    assert_eq!((one.unwrap().0, other.unwrap().0), (peer(2), peer(5)));
    let (one, other) = shake(&node(2), &like_ours).await;
    assert_eq!((one.unwrap().0, other.unwrap().0), (peer(5), peer(2)));
}

#[tokio::test]
async fn who_shows_the_key_of_another_without_having_it_is_refused() {
    let forged = certificate(&identity(5), &identity(1), 4096);
    is_refused(&showing(vec![forged]), "UnknownIssuer").await;
}

#[tokio::test]
async fn who_shows_the_certificate_of_another_without_its_key_is_refused() {
    let (of_another, _) = certificate(&identity(5), &identity(5), 4096);
    let (_, own_key) = certificate(&identity(1), &identity(1), 4096);
    is_refused(&showing(vec![(of_another, own_key)]), "BadSignature").await;
}

/// Says that its signatures are RSA's.
#[derive(Debug)]
struct SignsOtherwise(Arc<dyn SigningKey>);

impl SigningKey for SignsOtherwise {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self(self.0.clone())))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl Signer for SignsOtherwise {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signer = self.0.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        signer.unwrap().sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::RSA_PKCS1_SHA256
    }
}

#[tokio::test]
async fn a_signature_of_a_kind_that_is_not_taken_is_refused() {
    let (made, key) = certificate(&identity(5), &identity(5), 4096);
    let key = aws_lc_rs::sign::any_ecdsa_type(&key).unwrap();
    let shown = CertifiedKey::new(vec![made], Arc::new(SignsOtherwise(key)));
    is_refused(
        &showing_with(Some(shown)),
        "SignedHandshakeWithUnadvertisedSigScheme",
    )
    .await;
}

#[tokio::test]
async fn a_certificate_that_is_over_is_refused() {
    let over = certificate(&identity(5), &identity(5), 2020);
    is_refused(&showing(vec![over]), "InvalidCertValidity").await;
}

#[tokio::test]
async fn a_certificate_without_the_key_of_a_node_is_refused() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let made = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    is_refused(&showing(vec![(made.into(), key.into())]), "BadEncoding").await;
}

#[tokio::test]
async fn two_certificates_are_refused() {
    let made = || certificate(&identity(5), &identity(5), 4096);
    is_refused(&showing(vec![made(), made()]), "ApplicationVerificationFailure").await;
}

#[tokio::test]
async fn who_dials_and_shows_no_certificate_is_refused() {
    let (dialled, by_listener) = shake(&showing(vec![]), &node(2)).await;
    assert!(refusal(by_listener).contains("no certificate"));
    assert!(dialled.unwrap().1.read(&mut [0; 1]).await.is_err());
}

#[tokio::test]
async fn who_speaks_tls_before_1_3_is_refused() {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut older = node(1);
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Certificates))
        .with_client_cert_resolver(older.client.client_auth_cert_resolver.clone());
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Certificates))
        .with_cert_resolver(older.server.cert_resolver.clone());
    (older.client, older.server) = (Arc::new(client), Arc::new(server));
    let (dialled, by_listener) = shake(&older, &node(2)).await;
    let refused = refusal(by_listener);
    assert!(refused.contains("Tls12NotOfferedOrEnabled"), "{refused}");
    refusal(dialled);
    let (by_dialler, listening) = shake(&node(2), &older).await;
    refusal(by_dialler);
    refusal(listening);
}

#[tokio::test]
async fn who_does_not_say_that_it_speaks_libp2p_is_refused() {
    let silent = |spoken: Vec<Vec<u8>>| {
        let mut tls = node(1);
        let (mut client, mut server) = (ClientConfig::clone(&tls.client), ServerConfig::clone(&tls.server));
        client.alpn_protocols = spoken.clone();
        server.alpn_protocols = spoken;
        (tls.client, tls.server) = (Arc::new(client), Arc::new(server));
        tls
    };
    let (_, by_listener) = shake(&silent(vec![]), &node(2)).await;
    assert!(matches!(by_listener, Err(HandshakeError::OtherApplication)));
    let (by_dialler, _) = shake(&node(2), &silent(vec![])).await;
    assert!(matches!(by_dialler, Err(HandshakeError::OtherApplication)));
    let (_, by_listener) = shake(&silent(vec![b"h2".to_vec()]), &node(2)).await;
    refusal(by_listener);
}

#[tokio::test]
async fn nothing_of_a_session_is_kept_for_the_next() {
    let (dialler, listener) = (node(1), node(2));
    for _ in 0..2 {
        let (one, other) = shake(&dialler, &listener).await;
        let ((_, mut one), (_, mut other)) = (one.unwrap(), other.unwrap());
        // What a session could be resumed with comes before the first word.
        other.write_all(b"word").await.unwrap();
        other.flush().await.unwrap();
        one.read_exact(&mut [0; 4]).await.unwrap();
        for stream in [one, other] {
            assert_eq!(stream.state().handshake_kind(), Some(rustls::HandshakeKind::Full));
        }
    }
}

#[test]
fn secrets_are_written_nowhere() {
    let tls = node(1);
    for log in [&tls.client.key_log, &tls.server.key_log] {
        assert!(!log.will_log("CLIENT_TRAFFIC_SECRET_0"));
    }
}

#[tokio::test]
async fn what_is_no_tls_at_all_is_refused() {
    for rubbish in [
        b"\x13/multistream/1.0.0\n".repeat(300),
        vec![0; 100_000],
        vec![0x16; 100_000],
    ] {
        let (mut one, other) = Pipe::pair(1 << 20, 1 << 20);
        one.write_all(&rubbish).await.unwrap();
        refusal(node(2).upgrade_inbound(other, PROTOCOL).await);
    }
}

/// Bytes that differ.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|byte| (byte * 7 + byte / 251) as u8).collect()
}

#[tokio::test]
async fn what_is_said_is_heard_whatever_the_pieces() {
    let said = pattern(300_000);
    for (holds, at_once) in [(1, 1), (700, 13), (20_000, 16_000), (1 << 20, 1 << 20)] {
        let said = if at_once == 1 { &said[..40_000] } else { &said };
        let (mut one, mut other) = connected(Pipe::pair(holds, at_once)).await;
        let say = async {
            for piece in said.chunks(9_999) {
                one.write_all(piece).await.unwrap();
            }
            one.close().await.unwrap();
        };
        let mut heard = vec![];
        let ((), count) = futures::join!(say, other.read_to_end(&mut heard));
        assert_eq!(count.unwrap(), said.len());
        assert!(heard == said, "{holds}, {at_once}");
    }
}

#[tokio::test]
async fn both_may_speak_at_once_and_change_their_keys() {
    let said = pattern(100_000);
    let (one, other) = connected(Pipe::pair(30_000, 9_000)).await;
    let speak = async |stream: TlsStream<Pipe>| {
        let (mut reads, mut writes) = stream.split();
        let write = async {
            for piece in said.chunks(10_000) {
                writes.write_all(piece).await.unwrap();
                writes.flush().await.unwrap();
            }
        };
        let mut heard = vec![0; said.len()];
        let ((), read) = futures::join!(write, reads.read_exact(&mut heard));
        read.unwrap();
        assert!(heard == said);
        reads.reunite(writes).unwrap()
    };
    let (mut one, mut other) = futures::join!(speak(one), speak(other));
    one.change_key().unwrap();
    let (mut one, mut other2) = futures::join!(speak(one), speak(other));
    other2.change_key().unwrap();
    one.change_key().unwrap();
    other = futures::join!(speak(one), speak(other2)).1;
    drop(other);
}

#[tokio::test]
async fn small_writes_become_one_record() {
    let pipe = Pipe::pair(1 << 20, 1 << 20);
    let (mut one, mut other) = connected(pipe).await;
    let before = one.socket().said();
    for _ in 0..100 {
        one.write_all(b"0123456789").await.unwrap();
    }
    assert_eq!(one.socket().said(), before);
    one.flush().await.unwrap();
    let record = one.socket().said() - before;
    assert!((1000..1100).contains(&record), "{record}");
    let mut heard = [0; 1000];
    other.read_exact(&mut heard).await.unwrap();
}

#[tokio::test]
async fn who_does_not_read_costs_a_bound() {
    let holds = 10_000;
    let (mut one, _other) = connected(Pipe::pair(holds, 1 << 20)).await;
    let mut taken = 0;
    while taken < 1 << 20
        && let Poll::Ready(count) = poll!(one.write(&[7; 5000]))
    {
        taken += count.unwrap();
    }
    assert!(taken > TLS_OUTGOING - TLS_RECORD, "{taken}");
    assert!(taken <= holds + TLS_OUTGOING + 2 * TLS_RECORD, "{taken}");
    // Not to read what comes while one writes costs no more either.
    let (mut one, mut other) = connected(Pipe::pair(1 << 20, 1 << 20)).await;
    let mut said = 0;
    while said < 900_000 {
        said += one.write(&[7; 10_000]).await.unwrap();
    }
    one.flush().await.unwrap();
    other.read_exact(&mut [0; 1]).await.unwrap();
    for _ in 0..100 {
        other.write_all(b"word").await.unwrap();
        other.flush().await.unwrap();
    }
    assert!(
        (1..=2 * TLS_INCOMING).contains(&other.unread()),
        "{}",
        other.unread()
    );
}

#[tokio::test]
async fn a_connection_that_is_cut_is_not_one_that_ended() {
    let (mut one, mut other) = connected(Pipe::pair(1 << 20, 1 << 20)).await;
    one.write_all(b"half").await.unwrap();
    one.flush().await.unwrap();
    drop(one);
    let mut heard = vec![];
    let error = other.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(heard, b"half");
    let (mut one, mut other) = connected(Pipe::pair(1 << 20, 1 << 20)).await;
    one.close().await.unwrap();
    assert_eq!(other.read_to_end(&mut heard).await.unwrap(), 0);
    assert!(one.write(b"more").await.is_err());
    // The other direction is still open.
    other.write_all(b"more").await.unwrap();
    other.close().await.unwrap();
    let mut last = vec![];
    one.read_to_end(&mut last).await.unwrap();
    assert_eq!(last, b"more");
}

#[tokio::test]
async fn a_record_that_somebody_changes_ends_the_connection() {
    let (mut one, mut other) = connected(Pipe::pair(1 << 20, 1 << 20)).await;
    one.socket().spoil(one.socket().said() + 500);
    one.write_all(&[1; 1000]).await.unwrap();
    one.flush().await.unwrap();
    let mut heard = vec![];
    let error = other.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(heard.is_empty());
    // Neither can be said any more what nobody will hear.
    assert!(other.read(&mut [0; 1]).await.is_err());
    assert!(other.write(b"word").await.is_err() && other.flush().await.is_err());
    // The other end is told.
    assert!(
        one.read(&mut [0; 1])
            .await
            .unwrap_err()
            .to_string()
            .contains("BadRecordMac")
    );
}
