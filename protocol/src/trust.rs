//! Whom a node believes about which paths: the rules that its owner sets.
//!
//! A path that names itself by its content needs nobody. For every other one the first rule *for paths* whose
//! pattern fits says what is required; where none fits, [`Requirement::Roster`]. A rule *for a builder* says
//! besides whether the records of one builder count at all, and for which paths.
//!
//! ```
//! use tvix_node_protocol::trust::{PathPattern, Requirement, TrustPolicy, TrustRule};
//! let rule = TrustRule {
//!     paths: Some(PathPattern::new("*-openssl-*").expect("a pattern")),
//!     builder: None,
//!     requirement: Requirement::Own,
//!     because: None,
//! };
//! let mut policy = TrustPolicy::default();
//! policy.set(rule).expect("a good rule");
//! let path = "0c6kzph7l0dcbfmjap64f0czdafn3b7x-lib-openssl-3.0";
//! let path = tvix_node_protocol::StorePath::from_basename(path.as_bytes()).expect("a path");
//! assert_eq!(policy.for_path(&path), &Requirement::Own);
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::envelope::NodeKey;
use crate::nix::store_path::{STORE_DIR, StorePath};

/// Rules of one node. Each is a line that a person has written; looking all of them up for one path must
/// stay cheap.
pub const TRUST_RULES: usize = 256;

/// Bytes of a pattern: the longest name of a store path, its hash and its folder, and some stars.
pub const PATTERN_BYTES: usize = 512;

/// Builders that one quorum names. Each builds everything that the rule is for.
pub const QUORUM_BUILDERS: usize = 8;

/// What has to speak for a path before it is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Requirement {
    /// Only what this node built itself.
    #[serde(rename = "self")]
    Own,
    /// The record of one member with the role `build`, or the word of one with the role `store`.
    Roster,
    /// Records of several builders that agree on all outputs, from equal inputs.
    Quorum {
        /// How many have to agree.
        needed: u32,
        /// Who is asked, this node perhaps among them.
        of: Vec<NodeKey>,
    },
    /// As the roster says, and a share of what others built is built here again and compared.
    Sample {
        /// Of a hundred builds, how many.
        percent: u8,
    },
}

impl Requirement {
    /// How much it asks for: where a build is placed goes by the strictest requirement of its outputs.
    fn strictness(&self) -> (u8, u32) {
        match self {
            Self::Roster => (0, 0),
            Self::Sample { percent } => (1, u32::from(*percent)),
            Self::Quorum { needed, .. } => (2, *needed),
            Self::Own => (3, 0),
        }
    }

    /// Whether somebody's word is enough where no record speaks: a member with the role `store`, or a cache.
    #[must_use]
    pub const fn takes_a_word(&self) -> bool {
        matches!(self, Self::Roster | Self::Sample { .. })
    }
}

/// A pattern for store paths: `*` stands for any letters, `?` for one. It is matched against a path's name
/// (without its hash), or against the whole path where it begins with the store's folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern(String);

impl PathPattern {
    /// From what somebody wrote.
    ///
    /// # Errors
    /// [`RuleError`]: empty, too long, or with letters that no store path has.
    pub fn new(text: &str) -> Result<Self, RuleError> {
        if text.is_empty() || text.len() > PATTERN_BYTES {
            return Err(RuleError::PatternLength(text.len()));
        }
        let stray = text
            .chars()
            .find(|letter| !(letter.is_ascii_alphanumeric() || "+-._?=*/".contains(*letter)));
        if let Some(letter) = stray {
            return Err(RuleError::PatternLetter {
                pattern: text.to_owned(),
                letter,
            });
        }
        if text.contains('/') && !text.starts_with(STORE_DIR) {
            return Err(RuleError::PatternFolder(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a path fits.
    #[must_use]
    pub fn fits(&self, path: &StorePath) -> bool {
        if self.0.starts_with('/') {
            fits(self.0.as_bytes(), path.to_absolute_path().as_bytes())
        } else {
            fits(self.0.as_bytes(), path.name().as_bytes())
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl TryFrom<String> for PathPattern {
    type Error = RuleError;
    fn try_from(text: String) -> Result<Self, RuleError> {
        Self::new(&text)
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> Self {
        pattern.0
    }
}

/// Whether a text fits a pattern. Goes back to the last star only, so its time is the product of both lengths
/// at most.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(letter) if *letter == b'?' || *letter == text[read] => {
                at += 1;
                read += 1;
            }
            _ => match star {
                Some((star_at, taken)) => {
                    at = star_at + 1;
                    read = taken + 1;
                    star = Some((star_at, read));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustRule {
    /// For which paths; none: for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<PathPattern>,
    /// For whose records; none: whoever built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder: Option<NodeKey>,
    /// What is required.
    #[serde(rename = "require")]
    pub requirement: Requirement,
    /// Why this node made the rule itself; none: its owner set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// Why a rule is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Empty or too long.
    #[error("a pattern for paths has 1 to {PATTERN_BYTES} letters, not {0}")]
    PatternLength(usize),
    /// A letter that no store path has.
    #[error(
        "the pattern '{pattern}' has the letter {letter:?}, which no store path has; '*' stands for any letters, '?' \
         for one"
    )]
    PatternLetter {
        /// The pattern.
        pattern: String,
        /// The letter.
        letter: char,
    },
    /// Another folder.
    #[error(
        "the pattern '{0}' has a '/' and does not begin with {STORE_DIR}/: give the name of paths, as in '*-openssl-*', \
         or whole paths"
    )]
    PatternFolder(String),
    /// Nobody has to agree, or more than are named.
    #[error(
        "a quorum of {needed} cannot be had of {named} builders: name at least as many as have to agree, and at least one"
    )]
    Quorum {
        /// How many have to agree.
        needed: u32,
        /// How many are named.
        named: usize,
    },
    /// Too many.
    #[error(
        "a quorum names at most {QUORUM_BUILDERS} builders, not {0}: each builds everything that the rule is for"
    )]
    TooManyBuilders(usize),
    /// One counts once.
    #[error("the builder {0} is named twice in one quorum: nobody counts twice")]
    Twice(NodeKey),
    /// No share.
    #[error("a share of {0}% cannot be sampled: 1% to 100% can")]
    Share(u8),
    /// A quorum of one builder's records makes no sense.
    #[error(
        "a quorum is of several builders, so it cannot be a rule for one: leave out which builder the rule is for"
    )]
    QuorumOfOne,
    /// Too many rules.
    #[error("there are {TRUST_RULES} rules already, the most there can be: unset some")]
    TooManyRules,
}

impl TrustRule {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`RuleError`]
    pub fn check(&self) -> Result<(), RuleError> {
        match &self.requirement {
            Requirement::Own | Requirement::Roster => Ok(()),
            Requirement::Sample { percent } if (1..=100).contains(percent) => Ok(()),
            Requirement::Sample { percent } => Err(RuleError::Share(*percent)),
            Requirement::Quorum { .. } if self.builder.is_some() => Err(RuleError::QuorumOfOne),
            Requirement::Quorum { needed, of } => {
                if of.len() > QUORUM_BUILDERS {
                    return Err(RuleError::TooManyBuilders(of.len()));
                }
                if *needed == 0 || *needed as usize > of.len() {
                    return Err(RuleError::Quorum {
                        needed: *needed,
                        named: of.len(),
                    });
                }
                let twice = of.iter().enumerate().find(|(at, key)| of[..*at].contains(key));
                twice.map_or(Ok(()), |(_, key)| Err(RuleError::Twice(*key)))
            }
        }
    }

    fn fits(&self, path: &StorePath) -> bool {
        self.paths.as_ref().is_none_or(|pattern| pattern.fits(path))
    }

    /// Whether both are for the same paths and the same builder, so that one takes the other's place.
    fn is_for_the_same(&self, paths: Option<&PathPattern>, builder: Option<NodeKey>) -> bool {
        self.paths.as_ref() == paths && self.builder == builder
    }
}

/// All rules of a node, in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrustPolicy {
    rules: Vec<TrustRule>,
}

impl TrustPolicy {
    /// From rules that were written down.
    ///
    /// # Errors
    /// [`RuleError`]
    pub fn new(rules: Vec<TrustRule>) -> Result<Self, RuleError> {
        if rules.len() > TRUST_RULES {
            return Err(RuleError::TooManyRules);
        }
        rules.iter().try_for_each(TrustRule::check)?;
        Ok(Self { rules })
    }

    /// The rules, in the order in which they are tried.
    #[must_use]
    pub fn rules(&self) -> &[TrustRule] {
        &self.rules
    }

    /// Adds a rule before the others; one for the same paths and the same builder goes. A rule for all paths
    /// comes after those for some.
    ///
    /// # Errors
    /// [`RuleError`]
    pub fn set(&mut self, rule: TrustRule) -> Result<(), RuleError> {
        rule.check()?;
        self.unset(rule.paths.as_ref(), rule.builder);
        if self.rules.len() >= TRUST_RULES {
            return Err(RuleError::TooManyRules);
        }
        let at = match rule.paths {
            Some(_) => 0,
            None => self.rules.iter().filter(|rule| rule.paths.is_some()).count(),
        };
        self.rules.insert(at, rule);
        Ok(())
    }

    /// Takes a rule away. Whether there was one.
    pub fn unset(&mut self, paths: Option<&PathPattern>, builder: Option<NodeKey>) -> bool {
        let before = self.rules.len();
        self.rules.retain(|rule| !rule.is_for_the_same(paths, builder));
        self.rules.len() < before
    }

    /// The rule for a path, whoever built it; none: the roster's.
    #[must_use]
    pub fn rule_for_path(&self, path: &StorePath) -> Option<&TrustRule> {
        let mut rules = self.rules.iter().filter(|rule| rule.builder.is_none());
        rules.find(|rule| rule.fits(path))
    }

    /// The same rules for a node that has another key: what they say of `from` they say of `to`.
    #[must_use]
    pub fn renamed(&self, from: NodeKey, to: NodeKey) -> Self {
        let renamed = |node: NodeKey| if node == from { to } else { node };
        let rules = self.rules.iter().cloned().map(|rule| TrustRule {
            builder: rule.builder.map(renamed),
            requirement: match rule.requirement {
                Requirement::Quorum { needed, of } => Requirement::Quorum {
                    needed,
                    of: of.into_iter().map(renamed).collect(),
                },
                other => other,
            },
            ..rule
        });
        Self {
            rules: rules.collect(),
        }
    }

    /// What is required for a path, whoever built it.
    #[must_use]
    pub fn for_path(&self, path: &StorePath) -> &Requirement {
        self.rule_for_path(path)
            .map_or(&Requirement::Roster, |rule| &rule.requirement)
    }

    /// Whether any rule asks for more than somebody's word.
    #[must_use]
    pub fn may_ask_for_more_than_a_word(&self) -> bool {
        let mut rules = self.rules.iter().filter(|rule| rule.builder.is_none());
        rules.any(|rule| !rule.requirement.takes_a_word())
    }

    /// By what it is decided where something is built that makes all of these: the strictest requirement of any. Whether what was
    /// built counts is another question: there each output's own has to be met.
    #[must_use]
    pub fn for_paths<'a>(&self, paths: impl IntoIterator<Item = &'a StorePath>) -> &Requirement {
        let all = paths.into_iter().map(|path| self.for_path(path));
        all.max_by_key(|requirement| requirement.strictness())
            .unwrap_or(&Requirement::Roster)
    }

    /// The rule for what one builder says of a path, where there is one.
    #[must_use]
    pub fn rule_for_builder(&self, builder: NodeKey, path: &StorePath) -> Option<&TrustRule> {
        let mut rules = self.rules.iter().filter(|rule| rule.builder == Some(builder));
        rules.find(|rule| rule.fits(path))
    }

    /// Whether what a builder says of a path counts at all.
    #[must_use]
    pub fn distrusts(&self, builder: NodeKey, path: &StorePath) -> bool {
        self.rule_for_builder(builder, path)
            .is_some_and(|rule| rule.requirement == Requirement::Own)
    }

    /// Whether nothing that a builder says counts, whatever the path.
    #[must_use]
    pub fn distrusts_wholly(&self, builder: NodeKey) -> bool {
        let mut rules = self.rules.iter().filter(|rule| rule.builder == Some(builder));
        rules
            .next()
            .is_some_and(|rule| rule.paths.is_none() && rule.requirement == Requirement::Own)
    }

    /// Of a hundred builds of this builder that made this path, how many are built here again.
    #[must_use]
    pub fn sampled(&self, builder: NodeKey, path: &StorePath) -> u8 {
        let requirement = match self.rule_for_builder(builder, path) {
            Some(rule) => &rule.requirement,
            None => self.for_path(path),
        };
        match requirement {
            Requirement::Sample { percent } => *percent,
            _ => 0,
        }
    }
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
