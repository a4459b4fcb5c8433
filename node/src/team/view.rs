//! What the members of one team may see of what this node knows.
//!
//! A node may belong to several teams, which do not see each other. It has a key of its own in each, and what came from
//! one team is as if it were not here to the members of another: it is not announced, served, confirmed, used for their
//! builds or named to them. The store keeps with every path and record which teams may learn of it
//! ([`Audience`]); here is what follows from that.
//!
//! What this node's owner built by himself is signed with the key of the home. To members of a team in which the node
//! has another key, the same is said anew with that one.

use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, BuildRecord, SwarmId};
use tvix_node_protocol::envelope::{Envelope, NodeKey, NodeSecret, seal};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_store::{Audience, IndexError, Lease, Store};

use super::private::PrivateBook;

/// A node as one team sees it.
#[derive(Clone)]
pub struct TeamView {
    team: SwarmId,
    secret: Arc<NodeSecret>,
    /// Cached: deriving it from the secret costs as much as a signature.
    me: NodeKey,
    /// The key of the home, which builds of the owner's own are signed with.
    home: NodeKey,
}

impl TeamView {
    /// The node that has this secret in this team, and this key where its owner's own builds are concerned.
    pub fn new(team: SwarmId, secret: Arc<NodeSecret>, home: NodeKey) -> Self {
        let me = secret.key();
        Self {
            team,
            secret,
            me,
            home,
        }
    }

    /// The team.
    pub fn team(&self) -> SwarmId {
        self.team
    }

    /// This node, as it is known there.
    pub fn me(&self) -> NodeKey {
        self.me
    }

    /// What this node signs with there.
    pub fn secret(&self) -> &Arc<NodeSecret> {
        &self.secret
    }

    /// Who may learn of what comes from there.
    pub fn audience(&self) -> Audience {
        Audience::team(self.team)
    }

    /// A record as this team sees it: what the owner built is by this node, as it is known there.
    pub fn as_seen(&self, record: BuildRecord) -> BuildRecord {
        // A build for a member of another team is nothing that the owner did by himself.
        if record.builder == self.home && record.request.is_none() {
            BuildRecord {
                builder: self.me,
                ..record
            }
        } else {
            record
        }
    }

    /// The same, signed.
    fn signed_as_seen(&self, envelope: Envelope) -> Option<(BuildRecord, Envelope)> {
        let record: BuildRecord = envelope.open().ok()?;
        if record.builder != envelope.signer {
            return None;
        }
        let signer = record.builder;
        let seen = self.as_seen(record);
        if seen.builder == signer {
            return Some((seen, envelope));
        }
        match seal(&seen, &self.secret) {
            Ok(envelope) => Some((seen, envelope)),
            Err(error) => {
                tracing::warn!(%error, "a record cannot be signed for a team");
                None
            }
        }
    }

    /// Records of earlier builds of the same work by this node, as this team sees them.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn own_records(&self, store: &Store, key: &BuildKey) -> Result<Vec<BuildRecord>, IndexError> {
        let records = store.records_known_to(self.team, key)?.into_iter();
        let seen = records.filter_map(|envelope| {
            let record: BuildRecord = envelope.open().ok()?;
            (record.builder == envelope.signer).then(|| self.as_seen(record))
        });
        Ok(seen.filter(|record| record.builder == self.me).collect())
    }

    /// The record of an earlier build by this node of work that has one of these names, whose outputs have their names
    /// here still and are for this team to know. They stay for as long as the lease.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn built_before(
        &self,
        (store, lease): (&Store, &Lease),
        private: &PrivateBook,
        keys: &[BuildKey],
    ) -> Result<Option<BuildRecord>, IndexError> {
        for key in keys {
            for record in self.own_records(store, key)? {
                let outputs = || record.outputs.values();
                let paths: Vec<&StorePath> = outputs().map(|output| &output.path).collect();
                let hidden = store.known_to(self.team, paths.iter().copied())?.contains(&false);
                if hidden || paths.iter().any(|path| private.is_private(path)) {
                    continue;
                }
                let here = lease.hold(paths)?;
                let mut both = here.iter().zip(outputs());
                if both.all(|(here, output)| here.as_ref().is_some_and(|here| here.tree == output.tree)) {
                    return Ok(Some(record));
                }
            }
        }
        Ok(None)
    }

    /// What is known of a path, and the record that speaks for it where there is one, for members of this team. None:
    /// it is not here, or not for them.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn shown(&self, store: &Store, path: &StorePath) -> Result<Option<Shown>, IndexError> {
        let audience = store.audiences([path])?.pop().flatten();
        let Some(audience) = audience.filter(|audience| audience.includes(self.team)) else {
            return Ok(None);
        };
        let Some(info) = store.query(path)? else {
            return Ok(None);
        };
        let builder = match &info.origin {
            Origin::Built => Some(self.me),
            Origin::Record { builder } => Some(*builder),
            // A fixed output has a record where it was built and not fetched; its name speaks for it.
            Origin::Content | Origin::Peer { .. } | Origin::Cache { .. } | Origin::Imported => None,
        };
        let record = match builder {
            Some(builder) => self.record_of(store, builder, &info)?,
            None => None,
        };
        // What else is known of a path that others know, too, may be from them: who built it for them, and from what.
        let from_here = audience == self.audience();
        let ours = match &info.origin {
            Origin::Built | Origin::Record { .. } => record.is_some(),
            Origin::Peer { .. } => from_here,
            Origin::Imported => false,
            Origin::Content | Origin::Cache { .. } => true,
        };
        let deriver = match info.deriver {
            Some(deriver)
                if from_here || record.is_some() || store.known_to(self.team, [&deriver])? == [true] =>
            {
                Some(deriver)
            }
            _ => None,
        };
        let signed_for_us = from_here || matches!(info.origin, Origin::Cache { .. } | Origin::Imported);
        let info = PathInfo {
            origin: match ours {
                true => info.origin,
                // To others it is this node's word.
                false => Origin::Peer { peer: self.me },
            },
            deriver,
            signatures: match signed_for_us {
                true => info.signatures,
                false => Vec::new(),
            },
            // It may have come from others first.
            registered: 0,
            ..info
        };
        let record = record.map(|(_, envelope)| envelope);
        Ok(Some(Shown { info, record }))
    }

    /// The newest record of this builder for exactly this content that this team may learn of.
    fn record_of(
        &self,
        store: &Store,
        builder: NodeKey,
        info: &PathInfo,
    ) -> Result<Option<(BuildRecord, Envelope)>, IndexError> {
        let records = store
            .records_of_known_to(self.team, &info.path)?
            .into_iter()
            .rev();
        let mine = builder == self.me;
        let mut seen = records
            .filter(|envelope| envelope.signer == builder || mine && envelope.signer == self.home)
            .filter_map(|envelope| self.signed_as_seen(envelope))
            .filter(|(record, _)| {
                let mut outputs = record.outputs.values();
                record.builder == builder
                    && outputs.any(|output| output.path == info.path && output.tree == info.tree)
            });
        Ok(seen.next())
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
