//! What is told to whoever works with a cache that cannot be used: else paths would be built, or be missing, and nobody
//! but the node's log would know why.

use std::collections::BTreeMap;

use super::{NODE, Report, Upstreams, Users};

/// Why each of some caches is of no use for a path, by their URLs: the first reason of each.
pub(super) type Refusals = BTreeMap<String, String>;

/// That a cache cannot be used, or not for a path, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Its URL.
    pub cache: String,
    /// In words, which name the cache.
    pub text: String,
    users: Users,
}

impl Complaint {
    /// Whether this session uses the cache.
    #[must_use]
    pub fn concerns(&self, session: u64) -> bool {
        self.users.contains(&NODE) || self.users.contains(&session)
    }
}

impl Upstreams {
    /// One complaint of each cache that is not asked at the moment or gave such an answer.
    pub(super) fn complaints(&self, mut refusals: Refusals) -> Vec<Complaint> {
        let listed = self.lock();
        let complaints = listed.caches.iter().filter_map(|(cache, users)| {
            let text = match cache.report() {
                Report {
                    skipped: Some((seconds, reason)),
                    url,
                    ..
                } => {
                    let named = format!("{url}: ");
                    let reason = reason.strip_prefix(&named).unwrap_or(&reason);
                    format!("the binary cache {url} is not asked for {seconds} seconds: {reason}")
                }
                Report { url, .. } => refusals.remove(&url)?,
            };
            Some(Complaint {
                cache: cache.url().to_owned(),
                text,
                users: users.clone(),
            })
        });
        complaints.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tvix_node_coordinator::PathPresence;
    use tvix_node_protocol::StorePath;

    use super::*;
    use crate::daemon::room::Room;
    use crate::team::trust::TrustBook;
    use crate::upstream::Substituters;

    /// Of a path that is not here.
    fn presence() -> PathPresence {
        PathPresence {
            path: StorePath::from_parts([7; 20], "x").unwrap(),
            own: false,
            desired: false,
            sources: Vec::new(),
            unheard: false,
            nar_size: None,
        }
    }

    /// As a cache says that a path without a signature is packed, or that it is another path.
    fn narinfo(path: &StorePath, compression: &str) -> String {
        format!(
            "StorePath: {path}\nURL: nar/x\nCompression: {compression}\nNarHash: sha256:{}\nNarSize: 120\nReferences: \n",
            "0".repeat(52)
        )
    }

    #[tokio::test]
    async fn a_cache_that_is_of_no_use_is_complained_about_to_those_who_use_it() {
        let folder = tempfile::tempdir().unwrap();
        let me = tvix_node_protocol::envelope::NodeSecret::from_bytes(&[1; 32]).key();
        let trust = Arc::new(TrustBook::open(folder.path().join("trust.json"), me, Arc::default()).unwrap());
        let room = Room::of(folder.path().to_owned());
        let upstreams = Arc::new(Upstreams::new(folder.path().join("caches"), trust, room));
        upstreams.configure(&Substituters::default(), Vec::new()).unwrap();
        let (absent, other, unsigned) = ("absent", "other", "unsigned");
        let place = |name| folder.path().join(name);
        let path = presence().path;
        let file = format!("{}.narinfo", &path.to_basename()[..32]);
        for (name, said) in [
            (
                other,
                narinfo(&StorePath::from_parts([8; 20], "y").unwrap(), "none"),
            ),
            (unsigned, narinfo(&path, "none")),
        ] {
            std::fs::create_dir(place(name)).unwrap();
            std::fs::write(place(name).join(&file), said).unwrap();
        }
        let url = |name| format!("file://{}", place(name).display());
        let caches = [absent, other, unsigned].map(url).to_vec();
        let keys = Vec::new();
        upstreams
            .begin_session(3, &Substituters { caches, keys })
            .unwrap();
        // The second time nothing is asked anew.
        for _ in 0..2 {
            let (presences, complaints) = upstreams.complete(vec![presence()]).await;
            assert!(presences[0].sources.is_empty());
            let reasons = [
                (absent, "there is no folder"),
                (other, "speaks of"),
                (unsigned, "no signature"),
            ];
            assert_eq!(complaints.len(), reasons.len(), "{complaints:?}");
            for (complaint, (name, reason)) in complaints.iter().zip(reasons) {
                assert_eq!(complaint.cache, url(name));
                let text = &complaint.text;
                assert!(text.contains(reason) && text.contains(&url(name)), "{text}");
                assert!(complaint.concerns(3) && !complaint.concerns(4));
            }
        }
    }
}
