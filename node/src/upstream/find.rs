//! Which paths can be had from upstream caches.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use tokio::sync::mpsc;
use tvix_node_coordinator::{PathPresence, Source};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::narinfo::{NarInfo, TrustedPublicKey};
use tvix_node_store::Cached;

use super::Upstreams;
use super::cache::{Upstream, UpstreamError};
use super::complaint::{Complaint, Refusals};
use super::limits::{ASKED, SIGNED_BYTES, UNSIGNED_BYTES};

/// Where a path can be had.
#[derive(Debug, Clone)]
pub struct Found {
    /// The caches, the best first.
    pub sources: Vec<Source>,
    /// Bytes of its archive.
    pub nar_size: u64,
}

/// A path as a cache offers it, and why that is believed.
#[derive(Clone)]
pub(super) struct Offer {
    pub(super) cached: Cached,
    pub(super) cache: Arc<Upstream>,
}

/// That no cache has a path.
#[derive(Debug)]
pub(super) struct NoOffer {
    /// In words, for each cache.
    pub(super) reason: String,
    /// What caches said of it that cannot be used.
    refusals: Refusals,
}

impl Upstreams {
    /// Which of these paths caches have that are believed for them, and what cannot be used of what they say of the
    /// others.
    async fn find(self: &Arc<Self>, paths: &[StorePath]) -> (BTreeMap<StorePath, Found>, Refusals) {
        let asked = paths
            .iter()
            .cloned()
            .map(|path| async move { (self.offer(&path).await, path) });
        let mut answers = futures::stream::iter(asked).buffer_unordered(ASKED);
        let (mut found, mut refusals) = (BTreeMap::new(), Refusals::new());
        while let Some((answer, path)) = answers.next().await {
            match answer {
                Ok(offer) => {
                    let there = Found {
                        sources: vec![offer.cache.source()],
                        nar_size: offer.cached.info().nar_size(),
                    };
                    found.insert(path, there);
                }
                Err(none) => {
                    for (cache, reason) in none.refusals {
                        refusals.entry(cache).or_insert(reason);
                    }
                }
            }
        }
        (found, refusals)
    }

    /// Adds to what is known of paths where in upstream caches they are, and tells which caches are of no use for that.
    pub async fn complete(
        self: &Arc<Self>,
        mut presences: Vec<PathPresence>,
    ) -> (Vec<PathPresence>, Vec<Complaint>) {
        let missing = presences.iter().filter(|presence| !presence.own);
        let missing: Vec<StorePath> = missing.map(|presence| presence.path.clone()).collect();
        if self.is_empty() || missing.is_empty() {
            return (presences, Vec::new());
        }
        let (mut found, refusals) = self.find(&missing).await;
        for presence in &mut presences {
            if let Some(found) = found.remove(&presence.path) {
                presence.sources.extend(found.sources);
                presence.nar_size = presence.nar_size.or(Some(found.nar_size));
            }
        }
        (presences, self.complaints(refusals))
    }

    /// The first acceptable answer of any cache. All are asked at once; those that answer later are not
    /// waited for, and what they say is remembered all the same.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn offer(self: &Arc<Self>, path: &StorePath) -> Result<Offer, NoOffer> {
        self.client().map_err(|reason| NoOffer {
            reason,
            refusals: Refusals::new(),
        })?;
        // Whoever takes nobody's word need not be told that a cache's is not taken.
        let complains = self.takes_a_word(path);
        let (caches, keys) = self.view(path);
        let (answers, mut answered) = mpsc::channel(caches.len().max(1));
        for cache in caches {
            let (upstreams, path, answers) = (Arc::clone(self), path.clone(), answers.clone());
            tokio::spawn(async move {
                let answer = match upstreams.client() {
                    Ok(client) => cache.info(client, &path).await.map_err(|error| {
                        let alone = matches!(error, UpstreamError::Answer { .. });
                        (error.to_string(), alone)
                    }),
                    Err(error) => Err((error, false)),
                };
                // Whoever has an answer already does not listen any more.
                drop(answers.send((cache, answer)).await);
            });
        }
        drop(answers);
        let (mut reasons, mut refusals) = (Vec::new(), Refusals::new());
        while let Some((cache, answer)) = answered.recv().await {
            match answer {
                Ok(None) => {}
                Ok(Some(info)) => match accepted(info, &cache, &keys) {
                    Ok(offer) => return Ok(offer),
                    Err(reason) => {
                        tracing::info!(%path, reason, "a path that a cache has is not accepted");
                        if complains {
                            refusals.insert(cache.url().to_owned(), reason.clone());
                        }
                        reasons.push(reason);
                    }
                },
                Err((error, alone)) => {
                    tracing::info!(%path, error, "a cache could not be asked for a path");
                    if alone {
                        refusals.insert(cache.url().to_owned(), error.clone());
                    }
                    reasons.push(error);
                }
            }
        }
        if reasons.is_empty() {
            reasons.push(format!("no binary cache that can be asked has {path}"));
        }
        let reason = reasons.join("; ");
        Err(NoOffer { reason, refusals })
    }

    /// As [`Upstreams::offer`] from every cache but these, for when those have failed.
    pub(super) async fn other_offers(self: &Arc<Self>, path: &StorePath, tried: &[String]) -> Vec<Offer> {
        let (caches, keys) = self.view(path);
        let Ok(client) = self.client() else {
            return Vec::new();
        };
        let others = caches
            .into_iter()
            .filter(|cache| !tried.iter().any(|url| url == cache.url()));
        let asked = others.map(|cache| {
            let keys = &keys;
            async move {
                let info = cache.info(client, path).await.ok()??;
                accepted(info, &cache, keys).ok()
            }
        });
        futures::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    /// What caches say of a path, whoever signed it: for whoever knows what it must be.
    pub(super) async fn said(self: &Arc<Self>, path: &StorePath) -> Vec<(NarInfo, Arc<Upstream>)> {
        let (caches, _) = self.view(path);
        let Ok(client) = self.client() else {
            return Vec::new();
        };
        let asked = caches.into_iter().map(|cache| async move {
            let info = cache.info(client, path).await.ok()??;
            Some((info, cache))
        });
        futures::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

fn accepted(info: NarInfo, cache: &Arc<Upstream>, keys: &[TrustedPublicKey]) -> Result<Offer, String> {
    let cached = Cached::accept(info, cache.url(), keys).map_err(|error| error.to_string())?;
    let most = match cached.is_signed() {
        true => SIGNED_BYTES,
        false => UNSIGNED_BYTES,
    };
    let (said, path) = (cached.info().nar_size(), cached.info().store_path());
    if said > most {
        let cache = cache.url();
        return Err(format!(
            "the archive of {path} has {said} bytes, {cache} says, and not more than {most} are taken from a cache"
        ));
    }
    let cache = Arc::clone(cache);
    Ok(Offer { cached, cache })
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::nix::hash::{CAHash, NixHash};
    use tvix_node_protocol::nix::narinfo::Compression;
    use tvix_node_protocol::nix::signature::NixSecretKey;
    use tvix_node_protocol::nix::store_path::build_ca_path;

    use super::*;

    /// What a cache says of a fixed output, or of a path that was built, signed with a key.
    fn said(bytes: u64, key: Option<&NixSecretKey>) -> NarInfo {
        let ca = CAHash::Nar(NixHash::Sha256([1; 32]));
        let path = match key {
            None => build_ca_path("x", &ca, std::iter::empty::<&StorePath>(), false).unwrap(),
            Some(_) => StorePath::from_parts([1; 20], "x").unwrap(),
        };
        let info = |signatures: Vec<_>| {
            NarInfo::builder(path.clone(), "nar/x.nar", NixHash::Sha256([1; 32]), bytes)
                .content_address(key.is_none().then(|| ca.clone()))
                .compression(Compression::None)
                .signatures(signatures)
                .build()
                .unwrap()
        };
        let fingerprint = info(Vec::new()).fingerprint(&Default::default());
        let signatures = key.map(|key| key.sign(&fingerprint));
        info(signatures.into_iter().collect())
    }

    #[test]
    fn what_cannot_be_unpacked_is_not_taken_for_an_offer() {
        let cache = Arc::new(Upstream::new("https://cache.test").unwrap());
        for (packed, known) in [("xz", true), ("zstd", true), ("bzip2", false), ("br", false)] {
            let info = said(1, None);
            let packed = NarInfo::builder(info.store_path().clone(), "nar/x.nar", info.nar_hash().clone(), 1)
                .content_address(info.content_address().cloned())
                .compression(Compression::parse(packed))
                .build()
                .unwrap();
            let name = packed.compression().to_string();
            match accepted(packed, &cache, &[]) {
                Ok(_) => assert!(known, "{name}"),
                Err(error) => assert!(
                    !known && error.contains(&format!("packed with {name}")),
                    "{error}"
                ),
            }
            assert!(cache.is_asked());
        }
    }

    #[test]
    fn nobody_s_word_makes_an_archive_larger_than_is_taken() {
        let key = NixSecretKey::from_bytes("cache.test-1", &[1; 32]).unwrap();
        let trusted = [TrustedPublicKey::parse(&key.public()).unwrap()];
        let cache = Arc::new(Upstream::new("https://cache.test").unwrap());
        let accepted = |info| accepted(info, &cache, &trusted);
        for (most, key) in [(UNSIGNED_BYTES, None), (SIGNED_BYTES, Some(&key))] {
            assert!(accepted(said(most, key)).is_ok());
            for bytes in [most + 1, u64::MAX] {
                let error = accepted(said(bytes, key)).err().unwrap();
                assert!(
                    error.contains(&format!("not more than {most} are taken")),
                    "{error}"
                );
            }
        }
    }
}
