use serde::{Deserialize, Serialize};

use super::*;
use crate::presence::Advertisement;
use crate::roster::Roster;
use tvix_node_protocol::envelope::{NodeSecret, seal};
use tvix_node_protocol::limits::CELL_KEYS;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::presence::root_of;
use tvix_node_protocol::roster::{Founder, Genesis};

const NOW: u64 = 10_000;

fn secret(seed: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[seed; 32])
}

fn key(seed: u8) -> NodeKey {
    secret(seed).key()
}

/// A team of two founders, 1 and 2.
fn team() -> Roster {
    let mut founders: Vec<Founder> = [1, 2]
        .map(|seed| Founder {
            key: key(seed),
            name: format!("node {seed}"),
        })
        .into();
    founders.sort_by_key(|founder| founder.key);
    Roster::new(Genesis {
        name: "team".into(),
        founders,
        threshold: 1,
        salt: [7; 32],
    })
    .unwrap()
}

struct Table {
    table: PresenceTable,
    members: Members,
    epoch: Epoch,
}

impl Table {
    fn new() -> Self {
        Self {
            table: PresenceTable::new(team().swarm()),
            members: team().members(NOW),
            epoch: team().presence_secret().epoch(),
        }
    }

    fn offer(&mut self, envelope: &Envelope, sender: u8, now: u64) -> Result<Offer, PresenceRefusal> {
        self.table
            .offer(envelope, key(sender), &self.members, self.epoch, now)
    }

    fn put(&mut self, envelope: &Envelope, keys: &[PresenceKey], now: u64) -> Result<(), PresenceRefusal> {
        let sender = envelope.signer;
        match self
            .table
            .offer(envelope, sender, &self.members, self.epoch, now)?
        {
            Offer::Kept => Ok(()),
            Offer::KeysWanted(cell) => self
                .table
                .put(*cell, keys.to_vec(), &self.members, self.epoch, now),
        }
    }

    fn finds(&self, key: PresenceKey, now: u64) -> bool {
        let claims = self.table.query(self.epoch, &[key], now);
        claims.iter().any(|claim| {
            let header: PresenceHeader = claim.header.open().unwrap();
            let keys = tvix_node_protocol::presence::unpack(&claim.keys).unwrap();
            header.check_keys(&keys).is_ok() && keys.contains(&key)
        })
    }
}

fn path(number: u32) -> StorePath {
    let mut hash = [0; 20];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    StorePath::from_parts(hash, "x").unwrap()
}

fn keys(range: std::ops::Range<u32>) -> Vec<PresenceKey> {
    let secret = team().presence_secret();
    let mut keys: Vec<_> = range.map(|number| secret.key(&path(number))).collect();
    keys.sort();
    keys
}

fn header(holder: u8, serial: u64, keys: &[PresenceKey]) -> PresenceHeader {
    PresenceHeader {
        swarm: team().swarm(),
        epoch: team().presence_secret().epoch(),
        holder: key(holder),
        region: Region { bits: 0, prefix: 0 },
        depth: 0,
        cell: 0,
        count: keys.len() as u32,
        root: root_of(keys),
        serial,
        issued_at: NOW,
        not_after: NOW + 1000,
    }
}

fn sealed(holder: u8, serial: u64, keys: &[PresenceKey]) -> Envelope {
    seal(&header(holder, serial, keys), &secret(holder)).unwrap()
}

#[test]
fn what_a_holder_leaves_is_found_and_can_be_checked() {
    let mut table = Table::new();
    let keys = keys(0..10);
    let envelope = sealed(1, 1, &keys);
    let Ok(Offer::KeysWanted(cell)) = table.offer(&envelope, 1, NOW) else {
        panic!("the keys are not here");
    };
    assert_eq!(cell.count(), keys.len());
    assert!(!table.finds(keys[3], NOW), "an offer alone says nothing");
    table.put(&envelope, &keys, NOW).unwrap();
    assert!(keys.iter().all(|key| table.finds(*key, NOW)));
    assert!(!table.finds(self::keys(10..11)[0], NOW));
    assert!(
        table.table.query(Epoch([0; 8]), &keys, NOW).is_empty(),
        "another secret"
    );
}

#[test]
fn renewing_takes_the_header_alone() {
    let mut table = Table::new();
    let keys = keys(0..10);
    table.put(&sealed(1, 1, &keys), &keys, NOW).unwrap();
    let mut later = header(1, 2, &keys);
    (later.issued_at, later.not_after) = (NOW + 900, NOW + 2000);
    let later = seal(&later, &secret(1)).unwrap();
    assert_eq!(table.offer(&later, 1, NOW + 900), Ok(Offer::Kept));
    assert!(table.finds(keys[0], NOW + 2000));
}

#[test]
fn presence_expires() {
    let mut table = Table::new();
    let keys = keys(0..10);
    table.put(&sealed(1, 1, &keys), &keys, NOW).unwrap();
    let end = NOW + 1000 + CLOCK_SKEW;
    assert!(table.finds(keys[0], end));
    assert!(!table.finds(keys[0], end + 1));
    let members = table.members.clone();
    table.table.expire(&members, end);
    assert_eq!(table.table.size(), (1, 10));
    table.table.expire(&members, end + 1);
    assert_eq!(table.table.size(), (0, 0));
}

#[test]
fn who_is_no_member_any_more_is_dropped() {
    let mut table = Table::new();
    let keys = keys(0..10);
    table.put(&sealed(1, 1, &keys), &keys, NOW).unwrap();
    table.table.expire(&Members::default(), NOW);
    assert!(!table.finds(keys[0], NOW));
}

#[test]
fn what_is_withdrawn_is_gone_and_does_not_come_back() {
    let mut table = Table::new();
    let keys = keys(0..10);
    table.put(&sealed(1, 5, &keys), &keys, NOW).unwrap();
    let withdrawal = |holder: u8, signer: u8, serial| {
        let withdrawal = PresenceWithdrawal {
            swarm: team().swarm(),
            holder: key(holder),
            serial,
            issued_at: NOW,
        };
        seal(&withdrawal, &secret(signer)).unwrap()
    };
    let members = table.members.clone();
    let mut withdraw =
        |envelope: &Envelope, sender| table.table.withdraw(envelope, key(sender), &members, NOW);
    assert_eq!(
        withdraw(&withdrawal(1, 2, 9), 2),
        Err(PresenceRefusal::NotTheHolder)
    );
    assert_eq!(
        withdraw(&withdrawal(1, 1, 9), 2),
        Err(PresenceRefusal::NotTheHolder)
    );
    withdraw(&withdrawal(1, 1, 4), 1).unwrap();
    assert!(table.finds(keys[0], NOW), "it was said later");
    table
        .table
        .withdraw(&withdrawal(1, 1, 5), key(1), &members, NOW)
        .unwrap();
    assert!(!table.finds(keys[0], NOW));
    let stale = Err(PresenceRefusal::Stale { newest: 5 });
    assert_eq!(table.put(&sealed(1, 5, &keys), &keys, NOW), stale);
    table.put(&sealed(1, 6, &keys), &keys, NOW).unwrap();
    assert!(table.finds(keys[0], NOW));
}

#[test]
fn an_older_word_does_not_replace_a_newer_one() {
    let mut table = Table::new();
    let (old, new) = (keys(0..10), keys(5..15));
    table.put(&sealed(1, 2, &new), &new, NOW).unwrap();
    let stale = Err(PresenceRefusal::Stale { newest: 2 });
    assert_eq!(table.put(&sealed(1, 1, &old), &old, NOW), stale);
    table.put(&sealed(1, 3, &old), &old, NOW).unwrap();
    assert!(table.finds(keys(0..1)[0], NOW));
    assert!(!table.finds(keys(14..15)[0], NOW), "replaced as a whole");
    assert_eq!(table.table.size(), (1, 10));
}

#[test]
fn a_region_cut_anew_replaces_the_old_cells() {
    let mut table = Table::new();
    let all = keys(0..100);
    table.put(&sealed(1, 1, &all), &all, NOW).unwrap();
    let (low, high): (Vec<_>, Vec<_>) = all.iter().copied().partition(|key| key.leading(1) == 0);
    for (cell, part) in [(0, &low), (1, &high)] {
        let mut header = header(1, 2 + u64::from(cell), part);
        (header.depth, header.cell) = (1, cell);
        table.put(&seal(&header, &secret(1)).unwrap(), part, NOW).unwrap();
    }
    assert!(all.iter().all(|key| table.finds(*key, NOW)));
    assert_eq!(table.table.size(), (2, 100));
    let stale = Err(PresenceRefusal::Stale { newest: 3 });
    assert_eq!(table.offer(&sealed(1, 2, &all), 1, NOW), stale);
}

#[test]
fn an_empty_cell_takes_the_keys_away() {
    let mut table = Table::new();
    let keys = keys(0..10);
    table.put(&sealed(1, 1, &keys), &keys, NOW).unwrap();
    assert_eq!(table.offer(&sealed(1, 2, &[]), 1, NOW), Ok(Offer::Kept));
    assert!(!table.finds(keys[0], NOW));
    assert_eq!(table.table.size(), (0, 0));
}

#[test]
fn each_bad_header_has_its_reason() {
    let mut table = Table::new();
    let keys = keys(0..10);
    let mut refused = |signer: u8, sender: u8, change: fn(&mut PresenceHeader)| {
        let mut header = header(signer, 1, &keys);
        change(&mut header);
        let envelope = seal(&header, &secret(signer)).unwrap();
        table.offer(&envelope, sender, NOW).unwrap_err()
    };
    assert_eq!(refused(3, 3, |_| ()), PresenceRefusal::NotTheHolder, "a stranger");
    assert_eq!(refused(1, 2, |_| ()), PresenceRefusal::NotTheHolder, "passed on");
    assert_eq!(refused(1, 1, |h| h.holder = key(2)), PresenceRefusal::Invalid);
    assert_eq!(refused(1, 1, |h| h.depth = 99), PresenceRefusal::Invalid);
    assert_eq!(
        refused(1, 1, |h| h.swarm = SwarmId([0; 32])),
        PresenceRefusal::OtherSwarm
    );
    assert_eq!(
        refused(1, 1, |h| h.epoch = Epoch([0; 8])),
        PresenceRefusal::OtherEpoch
    );
    assert_eq!(
        refused(1, 1, |h| h.not_after = h.issued_at + PRESENCE_LIFETIME + 1),
        PresenceRefusal::Time
    );
    assert_eq!(
        refused(1, 1, |h| (h.issued_at, h.not_after) = (NOW + 500, NOW + 600)),
        PresenceRefusal::Time
    );
    assert_eq!(
        refused(1, 1, |h| (h.issued_at, h.not_after) = (NOW - 500, NOW - 400)),
        PresenceRefusal::Time
    );
    let mut forged = sealed(1, 1, &keys);
    forged.signature[0] ^= 1;
    assert_eq!(table.offer(&forged, 1, NOW), Err(PresenceRefusal::Invalid));
    assert_eq!(
        table.put(&sealed(1, 1, &keys), &keys[1..], NOW),
        Err(PresenceRefusal::Invalid)
    );
}

#[derive(Serialize, Deserialize)]
struct Tomorrow(String);
impl Statement for Tomorrow {
    const DOMAIN: &'static str = PresenceHeader::DOMAIN;
    const VERSION: u16 = PresenceHeader::VERSION + 1;
}

#[derive(Serialize, Deserialize)]
struct WithdrawnTomorrow(String);
impl Statement for WithdrawnTomorrow {
    const DOMAIN: &'static str = PresenceWithdrawal::DOMAIN;
    const VERSION: u16 = PresenceWithdrawal::VERSION + 1;
}

#[test]
fn words_of_an_unknown_version_are_refused_as_that_and_both_versions_are_said() {
    let mut table = Table::new();
    let header = seal(&Tomorrow("x".into()), &secret(1)).unwrap();
    let refused = table.offer(&header, 1, NOW).unwrap_err();
    let (got, known) = (Tomorrow::VERSION, PresenceHeader::VERSION);
    assert_eq!(refused, PresenceRefusal::Version { got, known });
    assert!(
        refused
            .to_string()
            .contains("of version 2, and version 1 is understood"),
        "{refused}"
    );
    let withdrawal = seal(&WithdrawnTomorrow("x".into()), &secret(1)).unwrap();
    let refused = table
        .table
        .withdraw(&withdrawal, key(1), &table.members, NOW)
        .unwrap_err();
    let (got, known) = (WithdrawnTomorrow::VERSION, PresenceWithdrawal::VERSION);
    assert_eq!(refused, PresenceRefusal::Version { got, known });
    // Who says it is looked at first, and whether it is signed.
    assert_eq!(table.offer(&header, 2, NOW), Err(PresenceRefusal::NotTheHolder));
    let mut forged = header;
    forged.signature[0] ^= 1;
    assert_eq!(table.offer(&forged, 1, NOW), Err(PresenceRefusal::Invalid));
}

#[test]
fn a_holder_has_its_share_and_no_more() {
    let mut table = Table::new();
    // As many cells of full size as fit, without signing each.
    let template = keys(0..CELL_KEYS as u32);
    table.put(&sealed(1, 1, &template), &template, NOW).unwrap();
    let cells = PRESENCE_KEYS_PER_HOLDER / CELL_KEYS;
    let holder = table.table.holders.get_mut(&key(1)).unwrap();
    for index in 1..cells {
        let cell = Cell {
            header: sealed(1, 1, &[]),
            epoch: Epoch([0; 8]),
            root: [0; 32],
            serial: 1,
            not_after: NOW + 1000,
            keys: template.clone().into_boxed_slice(),
        };
        holder.insert(
            Region {
                bits: 12,
                prefix: index as u16,
            },
            0,
            0,
            cell,
        );
    }
    let few = keys(0..1);
    let mut one_more = header(1, 2, &few);
    one_more.region = Region::of(few[0], 1);
    let one_more = seal(&one_more, &secret(1)).unwrap();
    assert_eq!(table.offer(&one_more, 1, NOW), Err(PresenceRefusal::Quota));
    assert_eq!(table.put(&one_more, &few, NOW), Err(PresenceRefusal::Quota));
    table.put(&sealed(2, 1, &few), &few, NOW).unwrap();
    assert_eq!(
        table.offer(&sealed(1, 2, &template), 1, NOW),
        Ok(Offer::Kept),
        "renewing goes on"
    );
}

#[test]
fn a_holder_leaves_so_many_cells_however_small() {
    let mut table = Table::new();
    let few = keys(0..1);
    table.put(&sealed(1, 1, &few), &few, NOW).unwrap();
    let header = sealed(1, 1, &few);
    let holder = table.table.holders.get_mut(&key(1)).unwrap();
    for number in 1..PRESENCE_CELLS_PER_HOLDER {
        let cell = Cell {
            header: header.clone(),
            epoch: Epoch([0; 8]),
            root: [0; 32],
            serial: 1,
            not_after: NOW + 1000,
            keys: few.clone().into_boxed_slice(),
        };
        let prefix = u16::try_from(number >> 4).unwrap();
        holder.insert(Region { bits: 12, prefix }, 4, number as u32 & 15, cell);
    }
    assert_eq!(holder.cells, PRESENCE_CELLS_PER_HOLDER);
    let mut one_more = self::header(1, 2, &few);
    one_more.region = Region::of(few[0], 1);
    let one_more = seal(&one_more, &secret(1)).unwrap();
    assert_eq!(table.offer(&one_more, 1, NOW), Err(PresenceRefusal::Quota));
    table.put(&sealed(2, 1, &few), &few, NOW).unwrap();
}

#[test]
fn of_so_many_holders_it_is_remembered_that_they_took_everything_back() {
    let mut table = Table::new();
    for number in 0..WITHDRAWALS {
        let mut holder = [0; 32];
        holder[..8].copy_from_slice(&(number as u64).to_le_bytes());
        table.table.withdrawn.insert(NodeKey(holder), (1, NOW + 10));
    }
    let withdrawal = PresenceWithdrawal {
        swarm: team().swarm(),
        holder: key(1),
        serial: 5,
        issued_at: NOW,
    };
    let said = seal(&withdrawal, &secret(1)).unwrap();
    let mut withdraw = |now| table.table.withdraw(&said, key(1), &table.members, now);
    assert_eq!(withdraw(NOW), Err(PresenceRefusal::Quota));
    // What is over makes room.
    assert_eq!(withdraw(NOW + 10), Ok(()));
    assert_eq!(table.table.withdrawn.len(), 1);
}

#[test]
fn the_room_for_all_is_shared_with_other_teams_and_not_gone_past() {
    let mut table = Table::new();
    // So many teams that one cell of full size is all that there is room for.
    table.table.set_teams(PRESENCE_KEYS / CELL_KEYS);
    let full = keys(0..CELL_KEYS as u32);
    table.put(&sealed(1, 1, &full), &full, NOW).unwrap();
    let few = keys(0..1);
    assert_eq!(
        table.put(&sealed(2, 1, &few), &few, NOW),
        Err(PresenceRefusal::Quota)
    );
    // With fewer teams there is more.
    table.table.set_teams(1);
    table.put(&sealed(2, 1, &few), &few, NOW).unwrap();
    table.table.set_teams(PRESENCE_CELLS);
    let other = keys(CELL_KEYS as u32..CELL_KEYS as u32 + 1);
    assert_eq!(
        table.put(&sealed(2, 2, &other), &other, NOW),
        Err(PresenceRefusal::Quota)
    );
}

#[test]
fn what_changed_between_an_offer_and_its_keys_counts() {
    let mut table = Table::new();
    let keys = keys(0..10);
    let offered = |table: &mut Table, serial| match table.offer(&sealed(1, serial, &keys), 1, NOW) {
        Ok(Offer::KeysWanted(cell)) => *cell,
        other => panic!("{other:?}"),
    };
    let members = table.members.clone();
    let put = |table: &mut Table, cell, keys: &[PresenceKey], members: &Members, epoch, now| {
        table.table.put(cell, keys.to_vec(), members, epoch, now)
    };
    let epoch = table.epoch;
    let cell = offered(&mut table, 1);
    let refused = put(&mut table, cell.clone(), &keys, &Members::default(), epoch, NOW);
    assert_eq!(refused, Err(PresenceRefusal::NotTheHolder), "put out meanwhile");
    let refused = put(&mut table, cell.clone(), &keys, &members, Epoch([0; 8]), NOW);
    assert_eq!(refused, Err(PresenceRefusal::OtherEpoch));
    let refused = put(&mut table, cell.clone(), &keys, &members, epoch, NOW + 10_000);
    assert_eq!(refused, Err(PresenceRefusal::Time));
    let refused = put(&mut table, cell.clone(), &keys[1..], &members, epoch, NOW);
    assert_eq!(refused, Err(PresenceRefusal::Invalid));
    let later = offered(&mut table, 2);
    put(&mut table, later, &keys, &members, epoch, NOW).unwrap();
    let refused = put(&mut table, cell, &keys, &members, epoch, NOW);
    assert_eq!(refused, Err(PresenceRefusal::Stale { newest: 2 }));
}

#[test]
fn a_question_for_many_keys_brings_each_cell_once_whatever_the_order() {
    let mut table = Table::new();
    let all = keys(0..200);
    let (low, high): (Vec<_>, Vec<_>) = all.iter().copied().partition(|key| key.leading(1) == 0);
    for (cell, part) in [(0, &low), (1, &high)] {
        let mut header = header(1, 1 + u64::from(cell), part);
        (header.depth, header.cell) = (1, cell);
        table.put(&seal(&header, &secret(1)).unwrap(), part, NOW).unwrap();
    }
    let other = keys(150..250);
    table.put(&sealed(2, 1, &other), &other, NOW).unwrap();
    let mut asked: Vec<PresenceKey> = all.iter().rev().copied().collect();
    asked.extend(keys(1000..1100));
    assert_eq!(table.table.query(table.epoch, &asked, NOW).len(), 3);
    let absent = keys(1000..1100);
    assert!(table.table.query(table.epoch, &absent, NOW).is_empty());
    assert_eq!(table.table.query(table.epoch, &[low[0]], NOW).len(), 1);
}

#[test]
fn an_advertisement_told_in_full_is_found_in_full() {
    let mut own = Advertisement::new(team().presence_secret(), 40);
    let paths: Vec<StorePath> = (0..3000).map(path).collect();
    own.add(&paths);
    let mut table = Table::new();
    for region in own.regions() {
        for cell in own.cells(region) {
            let header = PresenceHeader {
                region,
                depth: cell.depth,
                cell: cell.cell,
                ..header(1, 1, &cell.keys)
            };
            table
                .put(&seal(&header, &secret(1)).unwrap(), &cell.keys, NOW)
                .unwrap();
        }
    }
    assert!(
        paths
            .iter()
            .step_by(50)
            .all(|path| table.finds(own.secret().key(path), NOW))
    );
    // Many keys of a cell bring the cell once.
    let keys: Vec<_> = paths.iter().map(|path| own.secret().key(path)).collect();
    let claims = table.table.query(table.epoch, &keys, NOW);
    assert_eq!(claims.len(), table.table.size().0);
}
