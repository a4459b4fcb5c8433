//! Where members were seen, so that they can be found again after a restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::sync::Notify;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::limits::{ADDRESS_BYTES, ROSTER_STATEMENTS};
use tvix_node_protocol::messages::Contact;

use super::relays::is_relayed;
use crate::disk::{self, DiskError};
use crate::limits::ADDRESSES_PER_MEMBER;

const SCHEMA: u64 = 1;
/// Bytes of the file: every member with all its addresses.
const FILE_BYTES: usize = ROSTER_STATEMENTS * (ADDRESSES_PER_MEMBER * ADDRESS_BYTES + 128);

/// Addresses of members, the latest first.
#[derive(Debug, Default)]
pub(crate) struct Contacts {
    addresses: BTreeMap<NodeKey, Vec<Multiaddr>>,
    /// Whether one has become known, or a member been forgotten, since it was last looked.
    has_changed: bool,
}

impl Contacts {
    /// Notes where a member was reached: the first to try next time. True where that is new.
    pub(crate) fn add(&mut self, key: NodeKey, address: Multiaddr) -> bool {
        let Some(address) = without_name(&address) else {
            return false;
        };
        let known = self.addresses.entry(key).or_default();
        if let Some(position) = known.iter().position(|other| *other == address) {
            known[..=position].rotate_right(1);
            return false;
        }
        known.insert(0, address);
        known.truncate(ADDRESSES_PER_MEMBER);
        self.has_changed = true;
        true
    }

    /// Notes where a member says it can be reached: worth less than an address that worked.
    pub(crate) fn add_last(&mut self, key: NodeKey, address: Multiaddr) {
        let Some(address) = without_name(&address) else {
            return;
        };
        let known = self.addresses.entry(key).or_default();
        if known.contains(&address) {
            return;
        }
        // The first one stays: it may be the only one that works.
        known.truncate(ADDRESSES_PER_MEMBER - 1);
        known.push(address);
        self.has_changed = true;
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = NodeKey> {
        self.addresses.keys().copied()
    }

    pub(crate) fn get(&self, key: NodeKey) -> &[Multiaddr] {
        self.addresses.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Forgets who is not a member.
    pub(crate) fn retain(&mut self, is_member: impl Fn(NodeKey) -> bool) {
        let before = self.addresses.len();
        self.addresses.retain(|key, _| is_member(*key));
        self.has_changed |= self.addresses.len() < before;
    }

    /// As they travel.
    pub(crate) fn to_wire(&self) -> Vec<Contact> {
        let contact = |(key, addresses): (&NodeKey, &Vec<Multiaddr>)| Contact {
            key: *key,
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        self.addresses.iter().map(contact).collect()
    }

    /// Adds what travelled; what is no address is passed over.
    pub(crate) fn add_wire(&mut self, contacts: Vec<Contact>) {
        for contact in contacts {
            for address in contact.addresses.iter().rev().take(ADDRESSES_PER_MEMBER) {
                if let Ok(address) = address.parse() {
                    self.add(contact.key, address);
                }
            }
        }
    }
}

/// Who is behind an address is known; the name at its end is for others. That of a relay on the way stays. None where
/// nothing is left.
fn without_name(address: &Multiaddr) -> Option<Multiaddr> {
    let mut parts: Vec<Protocol<'_>> = address.iter().collect();
    if is_relayed(address) {
        if matches!(parts.last(), Some(Protocol::P2p(_))) {
            parts.pop();
        }
    } else {
        parts.retain(|part| !matches!(part, Protocol::P2p(_)));
    }
    let address: Multiaddr = parts.into_iter().collect();
    (!address.is_empty() && address.to_string().len() <= ADDRESS_BYTES).then_some(address)
}

/// The contacts of one team, and their file.
#[derive(Debug, Clone)]
pub(crate) struct SharedContacts {
    contacts: Arc<Mutex<Contacts>>,
    path: Arc<Option<PathBuf>>,
    news: Arc<Notify>,
    /// One at a time writes the file.
    saving: Arc<Mutex<()>>,
}

impl SharedContacts {
    /// Of a node that belongs to no team yet; never saved.
    pub(crate) fn in_memory(contacts: Contacts) -> Self {
        Self {
            contacts: Arc::new(Mutex::new(contacts)),
            path: Arc::new(None),
            news: Arc::default(),
            saving: Arc::default(),
        }
    }

    /// Reads those of a team's folder.
    pub(crate) fn open(folder: &Path) -> Result<Self, DiskError> {
        let path = folder.join("contacts");
        let mut contacts = Contacts::default();
        contacts.add_wire(disk::load(&path, SCHEMA, FILE_BYTES)?.unwrap_or_default());
        Ok(Self {
            contacts: Arc::new(Mutex::new(contacts)),
            path: Arc::new(Some(path)),
            news: Arc::default(),
            saving: Arc::default(),
        })
    }

    pub(crate) fn with<T>(&self, action: impl FnOnce(&mut Contacts) -> T) -> T {
        let mut contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        let result = action(&mut contacts);
        if std::mem::take(&mut contacts.has_changed) {
            self.news.notify_one();
        }
        result
    }

    /// Waits until something has changed since this returned last.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    pub(crate) fn addresses(&self, key: NodeKey) -> Vec<Multiaddr> {
        self.with(|contacts| contacts.get(key).to_vec())
    }

    /// Writes the file. Blocks.
    pub(crate) fn save(&self) -> Result<(), DiskError> {
        let Some(path) = self.path.as_deref() else {
            return Ok(());
        };
        let _turn = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let wire = self.with(|contacts| contacts.to_wire());
        disk::save(path, SCHEMA, &wire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: NodeKey = NodeKey([1; 32]);

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn the_latest_addresses_come_first_and_old_ones_go() {
        let mut contacts = Contacts::default();
        for port in 1..=20 {
            assert!(contacts.add(ANN, address(port)));
        }
        assert_eq!(contacts.get(ANN).len(), ADDRESSES_PER_MEMBER);
        assert_eq!(contacts.get(ANN)[0], address(20));
        assert!(!contacts.add(ANN, address(15)));
        assert_eq!(contacts.get(ANN)[..2], [address(15), address(20)]);
    }

    #[test]
    fn an_address_that_is_too_long_is_none() {
        let mut contacts = Contacts::default();
        let named =
            |length: usize| -> Multiaddr { format!("/dns4/{}/tcp/1", "x".repeat(length)).parse().unwrap() };
        let around = named(0).to_string().len();
        assert!(contacts.add(ANN, named(ADDRESS_BYTES - around)));
        assert!(!contacts.add(ANN, named(ADDRESS_BYTES - around + 1)));
        assert_eq!(contacts.get(ANN).len(), 1);
    }

    #[test]
    fn the_name_at_the_end_is_left_out_and_that_of_a_relay_is_not() {
        let (relay, ann) = (libp2p::PeerId::random(), libp2p::PeerId::random());
        let through = format!("/ip4/192.0.2.1/tcp/1/p2p/{relay}/p2p-circuit");
        for (address, kept) in [
            (
                format!("/ip4/192.0.2.1/tcp/1/p2p/{ann}"),
                "/ip4/192.0.2.1/tcp/1".to_owned(),
            ),
            (format!("{through}/p2p/{ann}"), through.clone()),
            (through.clone(), through),
        ] {
            let address = without_name(&address.parse().unwrap()).unwrap();
            assert_eq!(address.to_string(), kept);
        }
        assert!(without_name(&format!("/p2p/{ann}").parse().unwrap()).is_none());
    }

    #[test]
    fn contacts_survive_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let contacts = SharedContacts::open(home.path()).unwrap();
        contacts.with(|contacts| [1, 2].map(|port| contacts.add(ANN, address(port))));
        contacts.save().unwrap();
        let contacts = SharedContacts::open(home.path()).unwrap();
        assert_eq!(contacts.addresses(ANN), [address(2), address(1)]);
        contacts.with(|contacts| contacts.retain(|_| false));
        assert!(contacts.addresses(ANN).is_empty());
    }

    #[tokio::test]
    async fn what_becomes_known_is_news_once() {
        let contacts = SharedContacts::in_memory(Contacts::default());
        let is_news = async || {
            let news = tokio::time::timeout(std::time::Duration::ZERO, contacts.news());
            news.await.is_ok()
        };
        assert!(!is_news().await);
        contacts.with(|contacts| contacts.add(ANN, address(1)));
        assert!(is_news().await);
        contacts.with(|contacts| contacts.add(ANN, address(1)));
        contacts.with(|contacts| contacts.add_last(ANN, address(1)));
        assert!(!is_news().await);
        contacts.with(|contacts| contacts.add_last(ANN, address(2)));
        assert!(is_news().await);
    }

    #[test]
    fn what_is_no_address_is_passed_over() {
        let mut contacts = Contacts::default();
        contacts.add_wire(vec![Contact {
            key: ANN,
            addresses: vec!["nonsense".into(), address(1).to_string(), String::new()],
        }]);
        assert_eq!(contacts.get(ANN), [address(1)]);
    }
}
