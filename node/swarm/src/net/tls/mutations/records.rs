//! Records, the messages in them, and what somebody may make of them.

use super::mutation::{Random, changed};

/// Kinds of records.
pub(super) const CHANGE_CIPHER: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;

const HEADER: usize = 5;

/// Whether what follows the first message can be read on its way.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Sealed {
    No,
    Yes,
}

/// One record as it is sent. What it carries is cut to what its length can say.
pub(super) fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let content = &content[..content.len().min(u16::MAX.into())];
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3], length.as_slice(), content].concat()
}

/// One that is encrypted with the cipher that hides nothing.
pub(super) fn sealed(kind: u8, content: &[u8]) -> Vec<u8> {
    record(DATA, &[content, &[kind]].concat())
}

/// The records in what was honestly said.
pub(super) fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = vec![];
    while !bytes.is_empty() {
        let length = HEADER + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
        let (record, rest) = bytes.split_at(length);
        records.push(record.to_vec());
        bytes = rest;
    }
    records
}

/// What a record carries, and whether that are messages of the handshake that can be read.
fn content(record: &[u8], how: Sealed) -> (&[u8], bool) {
    let Some((header, content)) = record.split_at_checked(HEADER) else {
        return (&[], false);
    };
    match (header[0], content.split_last()) {
        (DATA, Some((kind, content))) if how == Sealed::No => (content, *kind == HANDSHAKE),
        (kind, _) => (content, kind == HANDSHAKE),
    }
}

/// The same kind of record with another content.
fn with_content(record_of: &[u8], how: Sealed, content: &[u8]) -> Vec<u8> {
    match (record_of[0], how) {
        (DATA, Sealed::No) => sealed(record_of[record_of.len() - 1], content),
        (kind, _) => record(kind, content),
    }
}

/// One message of the handshake.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

fn messages(mut content: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = vec![];
    while content.len() >= 4 {
        let length = 4 + u32::from_be_bytes([0, content[1], content[2], content[3]]) as usize;
        let (message, rest) = content.split_at(length.min(content.len()));
        messages.push(message.to_vec());
        content = rest;
    }
    messages
}

/// All that is said of the handshake in records that can be read.
fn handshake(records: &[Vec<u8>], how: Sealed) -> Vec<u8> {
    let contents = records.iter().map(|record| content(record, how));
    contents
        .filter(|(_, readable)| *readable)
        .flat_map(|(content, _)| content.to_vec())
        .collect()
}

/// Something that nobody honest says there.
fn strange(how: Sealed, random: &mut Random) -> Vec<u8> {
    let (kind, content) = match random.below(18) {
        0 => (CHANGE_CIPHER, vec![1]),
        1 => (CHANGE_CIPHER, vec![2, 1]),
        // Nothing more will be said.
        2 => (ALERT, vec![1, 0]),
        3 => (ALERT, vec![2, 0]),
        4 => (ALERT, vec![2, 80]),
        // The user wants no more: TLS 1.3 knows no other warning.
        5 => (ALERT, vec![1, 90]),
        6 => (ALERT, vec![random.below(4) as u8, random.below(256) as u8]),
        7 => (HANDSHAKE, vec![]),
        8 => (DATA, vec![]),
        9 => (DATA, vec![7; 1 + random.below(17_000)]),
        // The longest message there could be begins, or a longer one.
        10 => (HANDSHAKE, vec![1 + random.below(25) as u8, 0, 0xff, 0xff, 0]),
        11 => (HANDSHAKE, vec![1 + random.below(25) as u8, 0xff, 0xff, 0xff, 0]),
        // Another key, with an answer or without.
        12 => (HANDSHAKE, message(24, &[random.below(3) as u8])),
        // What a session could be resumed with.
        13 => {
            let ticket = [
                0, 1, 0, 0, 0, 0, 0, 0, 1, 7, 0, 2, 8, 9, 0, 8, 0, 42, 0, 4, 0, 0, 1, 0,
            ];
            (HANDSHAKE, message(4, &ticket))
        }
        // A certificate is demanded, or hello is said anew.
        14 => (HANDSHAKE, message(13, &[0, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3])),
        15 => (HANDSHAKE, message(random.below(26) as u8, &[])),
        16 => (
            random.below(256) as u8,
            vec![random.below(256) as u8; random.below(300)],
        ),
        _ => return vec![random.below(256) as u8; 1 + random.below(40)],
    };
    if how == Sealed::No && random.below(2) == 0 {
        sealed(kind, &content)
    } else {
        record(kind, &content)
    }
}

/// What somebody between the two ends makes of these records.
pub(super) struct Change {
    pub(super) bytes: Vec<u8>,
    /// The messages of the handshake are not those that were said, as far as they can be read.
    pub(super) says_otherwise: bool,
}

/// One change of these records, which are one or more; `earlier` ones were said on the connection before.
pub(super) fn change(said: &[Vec<u8>], earlier: &[Vec<u8>], how: Sealed, random: &mut Random) -> Change {
    let mut records = said.to_vec();
    let at = random.below(records.len());
    let to = random.below(records.len() + 1);
    match random.below(12) {
        0 => {
            let bytes = changed(&records.concat(), random);
            // Whether its records are still records is not known.
            return Change {
                bytes,
                says_otherwise: false,
            };
        }
        1 => {
            let content = changed(content(&said[at], how).0, random);
            records[at] = with_content(&said[at], how, &content);
        }
        2 => drop(records.remove(at)),
        3 => records.insert(to, said[at].clone()),
        4 => {
            let moved = records.remove(at);
            records.insert(to.min(records.len()), moved);
        }
        5 if !earlier.is_empty() => records.insert(to, earlier[random.below(earlier.len())].clone()),
        // One record becomes several, or many.
        5 | 6 => {
            let content = content(&said[at], how).0;
            let piece = 1 + random.below(content.len().max(1));
            let piece = if random.below(4) == 0 { 1 } else { piece };
            let pieces = content
                .chunks(piece)
                .map(|piece| with_content(&said[at], how, piece));
            records.splice(at..=at, pieces.collect::<Vec<_>>());
        }
        // Two become one.
        7 if at + 1 < records.len() => {
            let content = [content(&said[at], how).0, content(&said[at + 1], how).0].concat();
            records[at] = with_content(&said[at], how, &content);
            records.remove(at + 1);
        }
        8 => records.insert(to, strange(how, random)),
        // Much of it.
        9 => {
            let strange = strange(how, random);
            let many = 1 + random.below(2000).min(200_000 / strange.len());
            records.splice(to..to, vec![strange; many]);
        }
        10 => {
            let mut bytes = records.concat();
            bytes.truncate(random.below(bytes.len()));
            return Change {
                bytes,
                says_otherwise: false,
            };
        }
        // One message of one record: changed, left out, said twice, or said elsewhere.
        _ => {
            let (content, readable) = content(&said[at], how);
            let mut messages = if readable { messages(content) } else { vec![] };
            if !messages.is_empty() {
                let which = random.below(messages.len());
                let chosen = messages[which].clone();
                match random.below(6) {
                    0 => drop(messages.remove(which)),
                    1 => messages.insert(random.below(messages.len() + 1), chosen),
                    2 => messages.swap(which, 0),
                    _ => messages[which] = message(chosen[0], &changed(&chosen[4..], random)),
                }
                let pieces = messages.concat();
                let pieces = pieces.chunks(16_000);
                let pieces = pieces.map(|piece| with_content(&said[at], how, piece));
                records.splice(at..=at, pieces.collect::<Vec<_>>());
            }
        }
    }
    Change {
        bytes: records.concat(),
        says_otherwise: !handshake(&records, how).starts_with(&handshake(said, how)),
    }
}
