//! What a machine keeps, shows and serves.

use std::collections::BTreeMap;
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::{Envelope, NodeKey, seal};
use tvix_node_protocol::messages::{Claim, Shown};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::presence::{Epoch, PresenceHeader, PresenceKey};
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_swarm::presence::Offer;

use super::super::policy::opened;
use super::ledger::Judged;
use super::node::Node;
use super::world::{Disk, lock};

/// Members that keep the records of a region.
pub const KEEPERS: usize = 3;

/// Seconds for which it is said that a path is there.
const PRESENCE: u64 = 7_200;

impl Disk {
    /// What others may know of.
    pub fn public(&self) -> impl Iterator<Item = &StorePath> {
        self.paths.keys().filter(|path| !self.private.is_private(path))
    }

    /// Keeps a record; a newer one takes the place of an older one of the same work.
    pub fn put_record(&mut self, envelope: &Envelope) {
        let Ok(record) = opened(envelope) else { return };
        let put = |known: &mut Vec<Envelope>| {
            let same = |other: &Envelope| {
                other.signer == envelope.signer
                    && opened(other).is_ok_and(|other| other.build_key == record.build_key)
            };
            match known.iter_mut().find(|other| same(other)) {
                Some(old) => *old = envelope.clone(),
                None => known.push(envelope.clone()),
            }
        };
        for output in record.outputs.values() {
            put(self.records.entry(output.path.clone()).or_default());
        }
        put(self.by_key.entry(record.build_key).or_default());
    }

    pub fn closure<'a>(
        &self,
        roots: impl IntoIterator<Item = &'a StorePath>,
    ) -> BTreeMap<StorePath, PathInfo> {
        let mut closure = BTreeMap::new();
        let mut frontier: Vec<StorePath> = roots.into_iter().cloned().collect();
        while let Some(path) = frontier.pop() {
            if let Some(info) = self.paths.get(&path)
                && closure.insert(path, info.clone()).is_none()
            {
                frontier.extend(info.references.iter().cloned());
            }
        }
        closure
    }
}

impl Node {
    fn is_member(&self, key: NodeKey) -> bool {
        self.view().members.contains(key)
    }

    /// What is known of these paths; none where the asker is nobody.
    pub fn show(self: &Arc<Self>, asker: usize, paths: &[StorePath]) -> Option<Vec<Option<Shown>>> {
        if !self.is_member(self.world.plan.machines[asker].key) {
            return None;
        }
        let show = |path| {
            if self.is_honest() {
                self.shown_path(path)
            } else {
                self.lie_about(path)
            }
        };
        let shown: Vec<Option<Shown>> = paths.iter().map(show).collect();
        for shown in shown.iter().flatten() {
            let said = self.world.as_said(shown);
            let content = (shown.info.path.clone(), shown.info.tree);
            self.world.ledger().said((self.at, asker), content, said);
        }
        Some(shown)
    }

    pub fn shown_path(&self, path: &StorePath) -> Option<Shown> {
        let disk = lock(&self.world.disks[self.at]);
        if disk.private.is_private(path) {
            return None;
        }
        let info = disk.paths.get(path)?.clone();
        let builder = match &info.origin {
            Origin::Built => Some(self.key),
            Origin::Record { builder } => Some(*builder),
            _ => None,
        };
        let speaks = |envelope: &&Envelope| {
            Some(envelope.signer) == builder
                && opened(envelope).is_ok_and(|record| {
                    let mut outputs = record.outputs.values();
                    outputs.any(|output| output.path == info.path && output.tree == info.tree)
                })
        };
        let record = disk
            .records
            .get(path)
            .and_then(|known| known.iter().rev().find(speaks))
            .cloned();
        Some(Shown { info, record })
    }

    pub fn have(&self, asker: NodeKey, epoch: Epoch, keys: &[PresenceKey]) -> Option<Vec<bool>> {
        if !self.is_member(asker) || epoch != self.view().secret.epoch() {
            return None;
        }
        let core = lock(&self.core);
        let has = |key: &PresenceKey| !self.is_honest() || core.own.has(*key);
        if self.is_honest() {
            let told = keys.iter().filter(|key| has(key)).map(|key| key.0);
            self.world.ledger().keys_told(self.at, told);
        }
        Some(keys.iter().map(has).collect())
    }

    pub fn query(&self, asker: NodeKey, epoch: Epoch, keys: &[PresenceKey]) -> Option<Vec<Claim>> {
        if !self.is_member(asker) || epoch != self.view().secret.epoch() {
            return None;
        }
        let mut claims = lock(&self.core).table.query(epoch, keys, self.clock());
        if !self.is_honest() {
            self.falsify(&mut claims, keys);
        }
        Some(claims)
    }

    fn put(&self, sender: NodeKey, cells: &[(Envelope, Vec<PresenceKey>)]) -> bool {
        let (view, now) = (self.view(), self.clock());
        let epoch = view.secret.epoch();
        let table = &mut lock(&self.core).table;
        cells.iter().all(
            |(header, keys)| match table.offer(header, sender, &view.members, epoch, now) {
                Ok(Offer::Kept) => true,
                Ok(Offer::KeysWanted(wanted)) => table
                    .put(*wanted, keys.clone(), &view.members, epoch, now)
                    .is_ok(),
                Err(_) => false,
            },
        )
    }

    /// Which tree comes when this one is asked for; none: it is not given.
    pub fn serve_tree(&self, asker: NodeKey, tree: TreeDigest) -> Option<TreeDigest> {
        if !self.is_member(asker) {
            return None;
        }
        if !self.is_honest() {
            return self.serve_falsely(tree);
        }
        let disk = lock(&self.world.disks[self.at]);
        let mut public = disk
            .paths
            .values()
            .filter(|info| !disk.private.is_private(&info.path));
        let named = public.any(|info| info.tree == tree);
        let aside = || disk.aside.iter().any(|(_, other)| *other == tree);
        let given = named || (self.grants.has(asker, tree, self.clock()) && aside());
        if given && let Some(asker) = self.world.number(asker) {
            self.world.ledger().tree_given(self.at, asker, tree);
        }
        given.then_some(tree)
    }

    /// Tells those who keep the records what is here, a moment from now.
    pub fn publish_soon(self: &Arc<Self>) {
        if std::mem::replace(&mut lock(&self.core).publishing, true) {
            return;
        }
        let node = Arc::clone(self);
        self.spawn(async move {
            node.sleep(300).await;
            lock(&node.core).publishing = false;
            node.publish().await;
        });
    }

    async fn publish(self: &Arc<Self>) {
        let plan = &self.world.plan;
        let regions = lock(&self.core).own.regions();
        for region in regions {
            for keeper in plan
                .keepers(&region.label(), KEEPERS)
                .into_iter()
                .filter(|keeper| *keeper != self.at)
            {
                let key = plan.machines[keeper].key;
                let now = self.clock();
                let (cells, change) = {
                    let mut core = lock(&self.core);
                    if !core.own.is_due(region, key, now) {
                        continue;
                    }
                    let (epoch, change, cells) =
                        (core.own.epoch(), core.own.change(region), core.own.cells(region));
                    let mut signed = vec![];
                    for cell in cells {
                        core.serial += 1;
                        let keys = cell.keys.iter().map(|key| key.0);
                        self.world.ledger().advertised(self.at, keys);
                        let header = PresenceHeader {
                            swarm: plan.swarm,
                            epoch,
                            holder: self.key,
                            region,
                            depth: cell.depth,
                            cell: cell.cell,
                            count: u32::try_from(cell.keys.len()).unwrap(),
                            root: cell.root,
                            serial: core.serial,
                            issued_at: now,
                            not_after: now + PRESENCE,
                        };
                        signed.push((seal(&header, &plan.machines[self.at].secret).unwrap(), cell.keys));
                    }
                    (signed, change)
                };
                let sender = self.key;
                let told = self
                    .world
                    .ask(self.at, keeper, move |node| node.put(sender, &cells))
                    .await;
                if told == Some(true) {
                    lock(&self.core).own.told(region, key, change, now + PRESENCE / 2);
                }
            }
        }
    }

    /// What has this name here.
    pub fn tree_of(&self, path: &StorePath) -> Option<TreeDigest> {
        let disk = lock(&self.world.disks[self.at]);
        disk.paths.get(path).map(|info| info.tree)
    }

    /// Makes paths part of the store. Durable, and in sight, once this is over.
    pub async fn register(self: &Arc<Self>, infos: Vec<PathInfo>, record: Option<&Envelope>) {
        self.syncs().await;
        self.commit(infos, record, Judged::own(self.world.now()));
    }

    pub async fn syncs(&self) {
        let syncing = self.world.dice().between(1, 4);
        self.sleep(syncing).await;
    }

    pub fn commit(self: &Arc<Self>, infos: Vec<PathInfo>, record: Option<&Envelope>, judged: Judged) {
        let mut added = vec![];
        {
            let mut disk = lock(&self.world.disks[self.at]);
            if let Some(record) = record {
                disk.put_record(record);
            }
            for info in infos {
                for reference in info.references.iter().filter(|other| **other != info.path) {
                    assert!(
                        disk.paths.contains_key(reference),
                        "LOST: {} is registered without {reference}",
                        info.path
                    );
                }
                // A name that has another tree keeps it.
                if disk.paths.contains_key(&info.path) {
                    continue;
                }
                self.world
                    .ledger()
                    .registered(self.at, &info.path, info.tree, judged, self.world.now());
                if matches!(info.origin, Origin::Peer { .. }) {
                    self.world.ledger().taken_on_a_word(self.at, &info.path);
                }
                added.push(info.path.clone());
                disk.paths.insert(info.path.clone(), info);
            }
        }
        {
            let disk = lock(&self.world.disks[self.at]);
            added.retain(|path| !disk.private.is_private(path));
        }
        if !added.is_empty() {
            lock(&self.core).own.add(&added);
            self.publish_soon();
        }
    }

    pub async fn keep_aside(self: &Arc<Self>, infos: Vec<PathInfo>) {
        self.syncs().await;
        let mut disk = lock(&self.world.disks[self.at]);
        for info in infos {
            self.world.ledger().kept_aside(self.at, &info.path, info.tree);
            disk.aside.insert((info.path, info.tree));
        }
    }
}
