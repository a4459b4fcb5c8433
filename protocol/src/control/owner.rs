//! What the owner of a node decides: whom it believes, what stays private, what it lends to others; and
//! whether it is well.

use serde::{Deserialize, Serialize};

use crate::envelope::NodeKey;
use crate::nix::store_path::{StorePath, basename};
use crate::trust::{PathPattern, TrustRule};

use super::TrafficTerms;

/// Something that the owner of a node wants to know or to have from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "ask",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum OwnerQuestion {
    /// The rules of trust. Answered with [`OwnerAnswer::Trust`].
    Trust,
    /// Set a rule of trust; one for the same paths and builder goes. Answered with [`OwnerAnswer::Trust`].
    SetTrust {
        /// For which paths; none: for all.
        paths: Option<PathPattern>,
        /// For whose records, by name or key; none: whoever built.
        builder: Option<String>,
        /// What is required.
        require: NamedRequirement,
    },
    /// Take a rule of trust away. Answered with [`OwnerAnswer::Trust`].
    UnsetTrust {
        /// The paths that it is for; none: for all.
        paths: Option<PathPattern>,
        /// The builder that it is for, by name or key; none: whoever built.
        builder: Option<String>,
    },
    /// Why a path is or is not believed. Answered with [`OwnerAnswer::Explained`].
    ExplainTrust {
        /// The path.
        #[serde(with = "basename")]
        path: StorePath,
    },
    /// What is private. Answered with [`OwnerAnswer::Private`].
    Private,
    /// Keep paths private from now on, with everything that refers to them, or not any more. Answered with
    /// [`OwnerAnswer::Private`].
    SetPrivate {
        /// Whether they are.
        private: bool,
        /// Paths.
        #[serde(with = "basename")]
        paths: Vec<StorePath>,
        /// Patterns for paths.
        patterns: Vec<PathPattern>,
    },
    /// Whether a path is private. Answered with [`OwnerAnswer::IsPrivate`].
    IsPrivate {
        /// The path.
        #[serde(with = "basename")]
        path: StorePath,
    },
    /// Whether this node and its team are well. Answered with [`OwnerAnswer::Health`].
    Health,
    /// What is lent to others. Answered with [`OwnerAnswer::Sharing`].
    Sharing,
    /// Lend on these terms from now on. Answered with [`OwnerAnswer::Sharing`].
    SetSharing {
        /// The terms.
        terms: SharingTerms,
    },
    /// How much of the link is used. Answered with [`OwnerAnswer::Traffic`].
    Traffic,
    /// Use so much from now on. Answered with [`OwnerAnswer::Traffic`].
    SetTraffic {
        /// The terms.
        terms: TrafficTerms,
    },
}

/// On which terms this node builds for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SharingTerms {
    /// Whether it does at all.
    pub mode: SharingMode,
    /// Times of the day at which it does not, by the machine's clock.
    pub quiet: Vec<QuietHours>,
    /// Not while the machine runs on its battery.
    pub mains_only: bool,
    /// Not while the owner's own work keeps more than this busy, in hundredths of one core; none: no limit.
    pub max_load: Option<u32>,
    /// Fixed outputs of others, too: their builds reach the network from this machine.
    #[serde(default)]
    pub fixed_outputs: bool,
}

impl Default for SharingTerms {
    fn default() -> Self {
        Self {
            mode: SharingMode::On,
            quiet: Vec::new(),
            mains_only: false,
            max_load: None,
            fixed_outputs: false,
        }
    }
}

/// Whether a node builds for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharingMode {
    /// In slots that its own builds have left.
    On,
    /// Never.
    Off,
    /// While no command uses the node and the machine has little else to do.
    WhenIdle,
}

/// From one minute of the day to another, perhaps past midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuietHours {
    /// The first minute.
    pub from: u16,
    /// The first minute that is not quiet any more.
    pub until: u16,
}

impl QuietHours {
    /// Minutes of a day.
    pub const DAY: u16 = 24 * 60;

    /// Reads `22:00-07:30`.
    ///
    /// # Errors
    /// What was expected, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected =
            || format!("'{text}' is no time of the day: two times are expected, such as 22:00-07:30");
        let minute = |text: &str| {
            let (hours, minutes) = text.split_once(':')?;
            let read = |text: &str, limit: u16| {
                let digits = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse::<u16>()
                    .ok()
                    .filter(|number| digits && *number < limit)
            };
            Some(read(hours, 24)? * 60 + read(minutes, 60)?)
        };
        let (from, until) = text.split_once('-').ok_or_else(expected)?;
        let (from, until) = (
            minute(from).ok_or_else(expected)?,
            minute(until).ok_or_else(expected)?,
        );
        if from == until {
            return Err(format!(
                "'{text}' begins when it ends: 'share off' is for the whole day"
            ));
        }
        Ok(Self { from, until })
    }

    /// Whether a minute of the day is among them.
    #[must_use]
    pub const fn has(self, minute: u16) -> bool {
        if self.from < self.until {
            self.from <= minute && minute < self.until
        } else {
            self.from <= minute || minute < self.until
        }
    }
}

impl std::fmt::Display for QuietHours {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (from, until) = (self.from, self.until);
        write!(
            formatter,
            "{:02}:{:02}-{:02}:{:02}",
            from / 60,
            from % 60,
            until / 60,
            until % 60
        )
    }
}

/// A [`Requirement`](crate::trust::Requirement) whose builders are named as people name them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum NamedRequirement {
    /// Only what this node built itself.
    #[serde(rename = "self")]
    Own,
    /// As the roster says.
    Roster,
    /// Several of these have to agree.
    Quorum {
        /// How many.
        needed: u32,
        /// Names or keys; [`THIS_NODE`] is the node itself.
        of: Vec<String>,
    },
    /// A share is built here again.
    Sample {
        /// Of a hundred builds, how many.
        percent: u8,
    },
}

/// What a quorum calls the node whose rule it is.
pub const THIS_NODE: &str = "self";

/// The answer to an [`OwnerQuestion`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "answer",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum OwnerAnswer {
    /// The rules of trust.
    Trust {
        /// In the order in which they are tried.
        rules: Vec<TrustRule>,
        /// What the nodes that they name are called, as far as they are members.
        names: Vec<(NodeKey, String)>,
        /// This node.
        me: NodeKey,
        /// Builds that this node runs at once; with none, nothing can be sampled.
        slots: u32,
    },
    /// Why a path is or is not believed.
    Explained(Explanation),
    /// What is private.
    Private {
        /// Patterns.
        patterns: Vec<PathPattern>,
        /// Paths, sorted; here or not.
        #[serde(with = "basename")]
        paths: Vec<StorePath>,
    },
    /// Whether a path is private.
    IsPrivate {
        /// Whether it is.
        private: bool,
    },
    /// How this node and its team are.
    Health {
        /// What was looked at.
        findings: Vec<Finding>,
    },
    /// What is lent to others.
    Sharing {
        /// On which terms.
        terms: SharingTerms,
        /// Why nothing is lent at the moment; none: something is, where a slot is free.
        withheld: Option<String>,
        /// What other programs than the node keep busy, in hundredths of one core.
        load: u32,
    },
    /// How much of the link is used.
    Traffic {
        /// The terms.
        terms: TrafficTerms,
    },
}

/// Something that was looked at to find out whether a node is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Finding {
    /// What it is about, in a word or two, such as `clock`.
    pub about: String,
    /// How it is.
    pub state: Health,
    /// What was found.
    pub found: String,
    /// What to do about it; none: nothing.
    pub advice: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, and something should be done or known.
    Warning,
    /// Something does not work.
    Bad,
}

/// Why a path is or is not believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Explanation {
    /// The rule for the path; none: the roster decides.
    pub rule: Option<TrustRule>,
    /// How the path came to be in the store; none: it is not there.
    pub here: Option<String>,
    /// What builders that have to agree have come to.
    pub quorum: Option<String>,
    /// What members show of it, and whether that is believed.
    pub shown: Vec<ShownVerdict>,
    /// What the nodes that are named are called, as far as they are members.
    pub names: Vec<(NodeKey, String)>,
    /// This node.
    pub me: NodeKey,
}

/// What one member shows of a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShownVerdict {
    /// Who.
    pub peer: NodeKey,
    /// Whether it is believed.
    pub accepted: bool,
    /// Why, in words.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_hours_are_read_and_may_pass_midnight() {
        let night = QuietHours::parse("22:00-07:30").unwrap();
        assert_eq!(night.to_string(), "22:00-07:30");
        for (minute, quiet) in [
            (22 * 60, true),
            (0, true),
            (7 * 60 + 29, true),
            (7 * 60 + 30, false),
            (12 * 60, false),
        ] {
            assert_eq!(night.has(minute), quiet, "{minute}");
        }
        let day = QuietHours::parse("9:00-17:00").unwrap();
        assert!(day.has(9 * 60) && !day.has(17 * 60) && !day.has(0));
        for text in [
            "",
            "22-7",
            "24:00-07:00",
            "22:60-07:00",
            "22:00",
            "+1:00-2:00",
            "22:000-07:00",
        ] {
            assert!(
                QuietHours::parse(text).unwrap_err().contains("22:00-07:30"),
                "{text}"
            );
        }
        assert!(
            QuietHours::parse("07:00-07:00")
                .unwrap_err()
                .contains("share off")
        );
    }
}
