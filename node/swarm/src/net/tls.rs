//! What encrypts connections over TCP and through other members: TLS 1.3 after libp2p's specification, `/tls/1.0.0`.
//!
//! Each end shows one certificate that it signed itself. Its extension holds the node's own public key and that key's
//! signature under the certificate's: so who finishes a handshake has both, and is who the extension says. There is
//! no authority, nothing is resumed, and nothing is said before the handshake is finished.
//!
//! libp2p has this upgrade, too, and its certificates are made and read by libp2p's code here. What is different: AES
//! comes first where the processor has instructions for it (it costs a fraction of ChaCha20 there, which libp2p's puts
//! first always), no secrets are written where an environment variable says, nothing that a stranger sends ends in a
//! panic, a stranger's handshake costs little memory, and a busy connection sends and takes several records a call (see
//! [`stream`]).
//!
//! Where rustls is built with debug assertions, one thing does panic: a record that cannot be decrypted, after this end has
//! closed its direction. rustls asserts that it sends no alert after the closing one; without assertions it is an error.
//!
//! Source: <https://github.com/libp2p/specs/blob/master/tls/tls.md>.

mod certificates;
mod session;
mod stream;

use std::future::poll_fn;
use std::io;
use std::iter;
use std::net::Ipv4Addr;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, FutureExt};
use libp2p::PeerId;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::identity::Keypair;
use libp2p::tls::certificate;
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::pki_types::{IpAddr, ServerName};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, CommonState, ServerConfig};

use certificates::Certificates;
use session::Session;
pub(crate) use stream::TlsStream;

/// The name both sides agree on before TLS begins.
const PROTOCOL: &str = "/tls/1.0.0";

/// The name both sides agree on within TLS: who does not say it speaks something else.
const APPLICATION: &[u8] = b"libp2p";

/// Why connections cannot be encrypted at all.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// No certificate could be made.
    #[error("no certificate can be made: {0}")]
    Certificate(#[from] certificate::GenError),
    /// TLS does not take the certificate, or has none of the ciphers.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Why a connection was not encrypted, so there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// It broke, or one side refused the other: then the TLS error is the source.
    #[error("the TLS handshake failed: {0}")]
    Failed(#[from] io::Error),
    /// TLS could not begin.
    #[error("TLS cannot begin: {0}")]
    Begin(#[from] rustls::Error),
    /// The other end speaks TLS about something else.
    #[error("the other end did not say that it speaks libp2p")]
    OtherApplication,
    /// There must be one certificate.
    #[error("the other end showed {0} certificates instead of one")]
    Certificates(usize),
    /// The certificate is not one of libp2p's.
    #[error("the certificate of the other end is not valid: {0}")]
    Certificate(#[from] certificate::ParseError),
}

/// Encrypts connections, and tells who is at the other end.
#[derive(Clone)]
pub(crate) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// For the node with this key.
    ///
    /// # Errors
    /// [`EncryptionError`], which has no cause in the key.
    pub(crate) fn new(identity: &Keypair) -> Result<Self, EncryptionError> {
        Self::with_aes(identity, has_aes())
    }

    /// The same, where it is known whether the processor has instructions for AES.
    fn with_aes(identity: &Keypair, aes: bool) -> Result<Self, EncryptionError> {
        Self::with_ciphers(identity, ciphers(aes), aes)
    }

    /// The same with these ciphers.
    fn with_ciphers(identity: &Keypair, ciphers: CryptoProvider, aes: bool) -> Result<Self, EncryptionError> {
        let (certificate, key) = certificate::generate(identity)?;
        let key = aws_lc_rs::sign::any_ecdsa_type(&key)?;
        let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key)));
        let provider = Arc::new(ciphers);
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Certificates))
            .with_client_cert_resolver(shown.clone());
        client.alpn_protocols = vec![APPLICATION.to_vec()];
        // Each connection proves anew who is at its end.
        client.resumption = Resumption::disabled();
        // The specification: no name is sent.
        client.enable_sni = false;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(Certificates))
            .with_cert_resolver(shown);
        server.alpn_protocols = vec![APPLICATION.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        // AES without instructions for it costs many times what ChaCha20 does: who has none gets its way.
        server.ignore_client_order = !aes;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// The end of a connection that was dialled.
    fn dialler(self) -> Result<Box<dyn Session>, rustls::Error> {
        // TLS wants a name, ours have none: this one is neither sent nor looked at.
        let nobody = ServerName::IpAddress(IpAddr::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        Ok(Box::new(UnbufferedClientConnection::new(self.client, nobody)?))
    }

    /// The other end of it.
    fn listener(self) -> Result<Box<dyn Session>, rustls::Error> {
        Ok(Box::new(UnbufferedServerConnection::new(self.server)?))
    }
}

/// The ciphers in the order they are wanted in. AES-128 is the cheaper one, and as hard to break as the key exchange.
fn ciphers(aes: bool) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = if aes {
        vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ]
    } else {
        vec![
            TLS13_CHACHA20_POLY1305_SHA256,
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
        ]
    };
    provider
}

/// Whether the processor has instructions for AES-GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    // "aes" stands for the multiplication, too.
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Goes through the handshake.
async fn shake_hands<S>(
    socket: S,
    session: Box<dyn Session>,
) -> Result<(PeerId, TlsStream<S>), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = TlsStream::before_handshake(socket, session);
    poll_fn(|cx| stream.poll_handshake(cx)).await?;
    Ok((other_end(stream.state())?, stream))
}

/// Who is at the other end: what the certificate says that the handshake proved.
fn other_end(state: &CommonState) -> Result<PeerId, HandshakeError> {
    if state.alpn_protocol() != Some(APPLICATION) {
        return Err(HandshakeError::OtherApplication);
    }
    match state.peer_certificates().unwrap_or_default() {
        [certificate] => Ok(certificate::parse(certificate)?.peer_id()),
        others => Err(HandshakeError::Certificates(others.len())),
    }
}

impl UpgradeInfo for Tls {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(PROTOCOL)
    }
}

impl<S> InboundConnectionUpgrade<S> for Tls
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<S>);
    type Error = HandshakeError;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, socket: S, _: Self::Info) -> Self::Future {
        async move { shake_hands(socket, self.listener()?).await }.boxed()
    }
}

impl<S> OutboundConnectionUpgrade<S> for Tls
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<S>);
    type Error = HandshakeError;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, socket: S, _: Self::Info) -> Self::Future {
        async move { shake_hands(socket, self.dialler()?).await }.boxed()
    }
}

#[cfg(test)]
mod mutations;
#[cfg(test)]
pub(super) mod pipe;
#[cfg(test)]
mod tests;
