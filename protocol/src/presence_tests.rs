use super::*;
use crate::envelope::NodeSecret;
use crate::roster::Founder;

fn genesis(salt: u8) -> Genesis {
    Genesis {
        name: "team".into(),
        founders: vec![Founder {
            key: NodeSecret::from_bytes(&[1; 32]).key(),
            name: "one".into(),
        }],
        threshold: 1,
        salt: [salt; 32],
    }
}

fn path(name: &str) -> StorePath {
    StorePath::from_parts([7; 20], name).unwrap()
}

fn keys(bytes: &[u8]) -> Vec<PresenceKey> {
    bytes
        .iter()
        .map(|first| PresenceKey([&[*first][..], &[0; 15]].concat().try_into().unwrap()))
        .collect()
}

fn header(keys: &[PresenceKey]) -> PresenceHeader {
    PresenceHeader {
        swarm: SwarmId([0; 32]),
        epoch: Epoch([1; 8]),
        holder: NodeKey([2; 32]),
        region: Region {
            bits: 2,
            prefix: 0b10,
        },
        depth: 1,
        cell: 1,
        count: keys.len() as u32,
        root: root_of(keys),
        serial: 1,
        issued_at: 100,
        not_after: 200,
    }
}

#[test]
fn a_key_depends_on_the_path_the_team_and_every_revocation() {
    let secret = PresenceSecret::derive(&genesis(1), []);
    let key = secret.key(&path("hello"));
    assert_eq!(key, PresenceSecret::derive(&genesis(1), []).key(&path("hello")));
    assert_ne!(key, secret.key(&path("hellp")));
    let others = [
        PresenceSecret::derive(&genesis(2), []),
        PresenceSecret::derive(&genesis(1), [&[0; 32]]),
        PresenceSecret::derive(&genesis(1), [&[0; 32], &[1; 32]]),
    ];
    for other in &others {
        assert_ne!(other.key(&path("hello")), key);
        assert_ne!(other.epoch(), secret.epoch());
    }
}

#[test]
fn nothing_of_the_name_is_in_the_key() {
    let key = PresenceSecret::derive(&genesis(1), []).key(&path("hello"));
    let hash = path("hello").to_basename();
    assert!(
        !hash
            .as_bytes()
            .windows(4)
            .any(|part| key.0.windows(4).any(|other| other == part))
    );
}

#[test]
fn regions_grow_with_the_team() {
    assert_eq!(Region::bits_for(0), 0);
    assert_eq!(Region::bits_for(7), 0);
    assert_eq!(Region::bits_for(8), 1);
    assert_eq!(Region::bits_for(200), 5);
    assert_eq!(Region::bits_for(usize::MAX), REGION_BITS);
    let key = keys(&[0b1011_0000])[0];
    assert_eq!(Region::of(key, 0), Region { bits: 0, prefix: 0 });
    assert_eq!(
        Region::of(key, 3),
        Region {
            bits: 3,
            prefix: 0b101
        }
    );
}

#[test]
fn a_cell_holds_what_its_header_says_and_nothing_else() {
    // Region 10, cell 1 of 2: keys that begin with 101.
    let good = keys(&[0b1010_0000, 0b1010_0001, 0b1011_1111]);
    let header = header(&good);
    assert_eq!(header.check_structure(NodeKey([2; 32])), Ok(()));
    assert_eq!(header.check_keys(&good), Ok(()));
    assert_eq!(header.check_keys(&good[..2]), Err(PresenceError::Keys));
    let mut swapped = good.clone();
    swapped.swap(0, 1);
    assert_eq!(header.check_keys(&swapped), Err(PresenceError::Keys));
    let mut changed = good;
    changed[1] = keys(&[0b1010_0010])[0];
    assert_eq!(header.check_keys(&changed), Err(PresenceError::Keys));
}

#[test]
fn keys_of_another_cell_are_refused() {
    let elsewhere = keys(&[0b1000_0000]);
    assert_eq!(
        header(&elsewhere).check_keys(&elsewhere),
        Err(PresenceError::Keys)
    );
}

#[test]
fn a_header_that_does_not_hold_together_is_refused() {
    let refused = |change: fn(&mut PresenceHeader)| {
        let mut header = header(&[]);
        change(&mut header);
        header.check_structure(NodeKey([2; 32])).unwrap_err()
    };
    assert!(matches!(
        refused(|h| h.holder = NodeKey([3; 32])),
        PresenceError::Signer { .. }
    ));
    assert!(matches!(
        refused(|h| h.region.bits = 200),
        PresenceError::Place { .. }
    ));
    assert!(matches!(
        refused(|h| h.region.prefix = 4),
        PresenceError::Place { .. }
    ));
    assert!(matches!(refused(|h| h.depth = 200), PresenceError::Place { .. }));
    assert!(matches!(refused(|h| h.cell = 2), PresenceError::Place { .. }));
    assert!(matches!(
        refused(|h| h.count = u32::MAX),
        PresenceError::TooMany(_)
    ));
    assert_eq!(refused(|h| h.not_after = 1), PresenceError::Times);
}

#[test]
fn packed_keys_come_back() {
    let some = keys(&[1, 2, 3]);
    assert_eq!(unpack(&pack(&some)).unwrap(), some);
    assert_eq!(unpack(&pack(&some)[1..]), None);
}
