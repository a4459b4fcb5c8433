//! Founding a team together: what is agreed on before it begins.

use crate::envelope::NodeKey;
use crate::limits::FOUNDERS;
use crate::roster::{Founder, RosterError, check_name};

/// Why a team cannot be founded like this.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum FoundingError {
    /// A name that cannot be shown in one line.
    #[error(transparent)]
    Name(#[from] RosterError),
    /// A key that nobody has the secret of, or everybody.
    #[error(
        "{key} is not the key of a node, so '{name}' could not be a founder by it: 'tvix-node founder-key' there prints one"
    )]
    Key {
        /// What should be a key.
        key: NodeKey,
        /// Whose.
        name: String,
    },
    /// More than a team may have.
    #[error("{0} founders are more than the {FOUNDERS} that a team may have")]
    TooMany(usize),
    /// One key twice.
    #[error("'{one}' and '{other}' would be founders by the same key, {key}: each has a key of its own")]
    SameKey {
        /// The key.
        key: NodeKey,
        /// Whose it is.
        one: String,
        /// And whose.
        other: String,
    },
    /// One name twice.
    #[error("two founders would be called '{0}': people could not tell them apart")]
    SameName(String),
    /// A threshold that no number of founders can reach, or that needs none.
    #[error(
        "a threshold of {threshold} cannot be: the team has {founders} founders, so it is 1 to {founders}"
    )]
    Threshold {
        /// What was said.
        threshold: u16,
        /// How many founders there are.
        founders: usize,
    },
    /// Two founders: whatever the threshold is, something is lost with one key.
    #[error(
        "with two founders, say which threshold they have: with '--threshold 1' each of them can put out the other alone, and so \
         can who steals the key of one; with '--threshold 2' neither can, so that one whose key is lost or stolen stays in. \
         A third founder does away with both"
    )]
    Undecided,
}

/// How many founders together put out one of themselves, where nobody has said: more than half of them. So the others can do
/// without one whose key is lost or stolen, and who has one key cannot put out anybody else. None: of two founders, which no
/// threshold gives both.
#[must_use]
pub fn usual_threshold(founders: usize) -> Option<u16> {
    match founders {
        2 => None,
        _ => u16::try_from(founders / 2 + 1).ok(),
    }
}

/// Checks that a node that calls itself `me` can found a team together with `others`, and says how many of them put out one
/// of themselves: what is `wanted`, or else what is usual.
///
/// # Errors
/// See [`FoundingError`].
pub fn founding_threshold(me: &str, others: &[Founder], wanted: Option<u16>) -> Result<u16, FoundingError> {
    check_name(me)?;
    let founders = others.len() + 1;
    if founders > FOUNDERS {
        return Err(FoundingError::TooMany(founders));
    }
    for (at, founder) in others.iter().enumerate() {
        let (key, name) = (founder.key, founder.name.clone());
        check_name(&name)?;
        if !key.is_genuine() {
            return Err(FoundingError::Key { key, name });
        }
        let before = &others[..at];
        if name == me || before.iter().any(|other| other.name == name) {
            return Err(FoundingError::SameName(name));
        }
        if let Some(other) = before.iter().find(|other| other.key == key) {
            let (one, other) = (other.name.clone(), name);
            return Err(FoundingError::SameKey { key, one, other });
        }
    }
    let threshold = wanted
        .or_else(|| usual_threshold(founders))
        .ok_or(FoundingError::Undecided)?;
    match threshold == 0 || usize::from(threshold) > founders {
        true => Err(FoundingError::Threshold { threshold, founders }),
        false => Ok(threshold),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::NodeSecret;

    fn founder(seed: u8, name: &str) -> Founder {
        Founder {
            key: NodeSecret::from_bytes(&[seed; 32]).key(),
            name: name.to_owned(),
        }
    }

    fn others(count: u8) -> Vec<Founder> {
        (1..=count)
            .map(|seed| founder(seed, &format!("founder {seed}")))
            .collect()
    }

    #[test]
    fn the_usual_threshold_does_without_one_key_and_is_not_reached_by_one() {
        assert_eq!(usual_threshold(1), Some(1));
        assert_eq!(usual_threshold(2), None);
        for founders in 3..=FOUNDERS {
            let threshold = usize::from(usual_threshold(founders).unwrap());
            assert!((2..founders).contains(&threshold), "{threshold} of {founders}");
            // Nor do two groups that disagree put each other out.
            assert!(2 * threshold > founders);
        }
        assert_eq!(founding_threshold("me", &others(2), None), Ok(2));
        assert_eq!(founding_threshold("me", &others(4), None), Ok(3));
        assert_eq!(founding_threshold("me", &[], None), Ok(1));
    }

    #[test]
    fn two_founders_decide_what_they_can_lose() {
        let undecided = founding_threshold("me", &others(1), None).unwrap_err();
        assert_eq!(undecided, FoundingError::Undecided);
        for threshold in [1, 2] {
            assert_eq!(
                founding_threshold("me", &others(1), Some(threshold)),
                Ok(threshold)
            );
        }
    }

    #[test]
    fn a_threshold_is_one_that_the_founders_can_reach_and_that_takes_somebody() {
        for threshold in [0, 4, u16::MAX] {
            let error = founding_threshold("me", &others(2), Some(threshold)).unwrap_err();
            let founders = 3;
            assert_eq!(error, FoundingError::Threshold { threshold, founders });
        }
        for threshold in [1, 2, 3] {
            assert_eq!(
                founding_threshold("me", &others(2), Some(threshold)),
                Ok(threshold)
            );
        }
        assert!(founding_threshold("me", &[], Some(2)).is_err());
    }

    #[test]
    fn each_founder_has_a_name_and_a_key_of_its_own() {
        let check = |others: &[Founder]| founding_threshold("me", others, Some(1)).unwrap_err();
        let twins = [founder(1, "bob"), founder(2, "bob")];
        assert_eq!(check(&twins), FoundingError::SameName("bob".to_owned()));
        assert_eq!(
            check(&[founder(1, "me")]),
            FoundingError::SameName("me".to_owned())
        );
        let error = check(&[founder(1, "bob"), founder(2, "cat"), founder(1, "dan")]);
        assert!(matches!(error, FoundingError::SameKey { one, other, .. } if one == "bob" && other == "dan"));
        assert!(matches!(check(&[founder(1, "a\tb")]), FoundingError::Name(_)));
        // Under this one, anybody could sign.
        let mut weak = [0; 32];
        weak[0] = 1;
        for key in [weak, [0xff; 32]].map(NodeKey) {
            let name = "bob".to_owned();
            assert!(matches!(
                check(&[Founder { key, name }]),
                FoundingError::Key { .. }
            ));
        }
        let many = others(u8::try_from(FOUNDERS).unwrap());
        assert_eq!(check(&many), FoundingError::TooMany(FOUNDERS + 1));
        assert!(founding_threshold("me", &many[1..], None).is_ok());
    }
}
