//! Which member a user means.

use crate::envelope::NodeKey;
use crate::limits::KEY_BEGINNING;

/// Letters of a key that are shown beside a name that several have.
const SHOWN_BEGINNING: usize = 12;

/// Names in a message: more than these would bury it.
const NAMES_LISTED: usize = 20;

/// The member, of these keys and names, whose key is `text` or begins with it, or that is called so: in this order, so that nobody is
/// reached by what he calls himself where another's key is said.
///
/// # Errors
/// See [`MemberError`].
pub fn find_member(members: &[(NodeKey, &str)], text: &str) -> Result<NodeKey, MemberError> {
    let keys_where = |fits: &dyn Fn(&NodeKey, &str) -> bool| -> Vec<NodeKey> {
        let found = members.iter().filter(|(key, name)| fits(key, name));
        found.map(|(key, _)| *key).collect()
    };
    let beginning = text.to_ascii_lowercase();
    let mut found = match text.len() >= KEY_BEGINNING {
        true => keys_where(&|key, _| key.to_string().starts_with(&beginning)),
        false => Vec::new(),
    };
    if found.is_empty() {
        found = keys_where(&|_, name| name == text);
    }
    let wanted = text.to_owned();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(MemberError::Unknown {
            wanted,
            names: members
                .iter()
                .map(|(key, name)| match keys_where(&|_, other| other == *name).len() {
                    1 => (*name).to_owned(),
                    // By its name alone it could not be meant.
                    _ => format!("{name} ({})", &key.to_string()[..SHOWN_BEGINNING]),
                })
                .collect(),
        }),
        _ => Err(MemberError::Ambiguous { wanted, keys: found }),
    }
}

/// Why a text names no member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Nobody is called so.
    #[error(
        "no member of the team is called '{}', and {}; the members are {}",
        .wanted.escape_debug(),
        no_key(.wanted),
        listed(.names)
    )]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// What the members are called.
        names: Vec<String>,
    },
    /// Several are.
    #[error(
        "'{}' names several members: say which one by its key, {}",
        .wanted.escape_debug(),
        .keys.iter().map(NodeKey::to_string).collect::<Vec<_>>().join(" or ")
    )]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// Whom it may mean.
        keys: Vec<NodeKey>,
    },
}

fn no_key(wanted: &str) -> String {
    let is_short = wanted.len() < KEY_BEGINNING && wanted.chars().all(|letter| letter.is_ascii_hexdigit());
    match is_short {
        true => format!("to mean a key it takes {KEY_BEGINNING} of its letters"),
        false => "no key begins with it".to_owned(),
    }
}

fn listed(names: &[String]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(NAMES_LISTED)
        .map(|name| format!("'{}'", name.escape_debug()))
        .collect();
    match names.len().checked_sub(NAMES_LISTED) {
        None | Some(0) => shown.join(", "),
        Some(more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_found_by_its_name_or_key() {
        let key = |byte: u8| NodeKey([byte; 32]);
        // Somebody who takes another's key, or the beginning of it, for a name is not reached by it.
        let members = [
            (key(0xaa), "ann"),
            (key(0xbb), "bob"),
            (key(0xcc), "bbbbbbbbbb"),
            (key(0xee), &"a".repeat(64)),
            (key(0x11), "twin"),
            (key(0x12), "twin"),
        ];
        let find = |text: &str| find_member(&members, text);
        for (text, byte) in [
            ("ann", 0xaa),
            (&"b".repeat(64), 0xbb),
            (&"a".repeat(64), 0xaa),
            (&"A".repeat(64), 0xaa),
            ("BBBBBBBB", 0xbb),
            ("bbbbbbbbbb", 0xbb),
            ("cccccccc", 0xcc),
            ("11111111", 0x11),
        ] {
            assert_eq!(find(text), Ok(key(byte)), "{text}");
        }
        let (wanted, keys) = ("twin".to_owned(), vec![key(0x11), key(0x12)]);
        assert_eq!(find("twin"), Err(MemberError::Ambiguous { wanted, keys }));
        for text in ["", "Ann", "aaaaaaa", "dddddddddd"] {
            let error = find(text).unwrap_err();
            assert!(matches!(error, MemberError::Unknown { .. }), "{error}");
            assert!(
                error.to_string().contains("'ann', 'bob'")
                    && error.to_string().contains("'twin (121212121212)'"),
                "{error}"
            );
        }
        let said = |text: &str| find(text).unwrap_err().to_string();
        assert!(said("aaaaaaa").contains("takes 8 of its letters"));
        assert!(said("Ann").contains("no key begins with it") && said("dddddddd").contains("no key begins"));
    }
}
