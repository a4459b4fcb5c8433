//! Whom the node believes about which paths.

use clap::{Args, Subcommand};
use tvix_node_protocol::control::NamedRequirement;
use tvix_node_protocol::trust::PathPattern;

use super::parse::UsageError;

/// What is done with the rules of trust.
#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// Show the rules, in the order in which they are tried
    Show {
        /// Print them as JSON, with whole keys
        #[arg(long)]
        json: bool,
    },
    /// Set a rule; one for the same paths and the same builder goes
    ///
    /// 'self': only what this node builds itself. 'roster' (what holds where no rule fits): the record of one member
    /// with the role 'build', or the word of one with the role 'store'. 'quorum K --of A --of B …': K of the builders
    /// named have to make the same from the same inputs; 'self' among them is this node. 'sample P%': as 'roster', and
    /// a share of what others built is built here again; who made something else is believed no more.
    Set {
        #[command(flatten)]
        rule: TrustArguments,
    },
    /// Take a rule away
    Unset {
        #[command(flatten)]
        of: RuleOf,
    },
    /// Say why a path is or is not believed
    Explain {
        /// A store path, or a link to one
        #[arg(value_name = "PATH")]
        path: String,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
}

/// What a rule is for.
#[derive(Debug, Args)]
pub struct RuleOf {
    /// Only for paths with such a name ('*' stands for any letters, '?' for one), such as '*openssl*'; or for whole
    /// paths that begin with /nix/store/ [default: all paths]
    #[arg(long, value_name = "PATTERN", value_parser = PathPattern::new)]
    pub paths: Option<PathPattern>,
    /// Only for what this member built: 'self' lets it not count [default: whoever built]
    #[arg(long, value_name = "MEMBER")]
    pub builder: Option<String>,
}

/// A rule.
#[derive(Debug, Args)]
pub struct TrustArguments {
    /// What is required: 'self', 'roster', 'quorum K' or 'sample P%'
    #[arg(value_name = "REQUIREMENT", required = true, num_args = 1..)]
    require: Vec<String>,
    /// A builder of the quorum, by its name or key; may be given several times
    #[arg(long = "of", value_name = "MEMBER", value_delimiter = ',')]
    of: Vec<String>,
    #[command(flatten)]
    pub rule: RuleOf,
}

impl TrustArguments {
    /// What is required.
    ///
    /// # Errors
    /// What is none of the requirements there are.
    pub fn requirement(&self) -> Result<NamedRequirement, UsageError> {
        // 'quorum 2' may be one argument or two.
        let text = self.require.join(" ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let requirement = match words.as_slice() {
            ["self"] => NamedRequirement::Own,
            ["roster"] => NamedRequirement::Roster,
            ["quorum", needed] => NamedRequirement::Quorum {
                needed: needed.parse().map_err(|_| {
                    UsageError::new(format!(
                        "'quorum {needed}' is no quorum: say how many builders have to agree, such as 'quorum 2'"
                    ))
                })?,
                of: self.of.clone(),
            },
            ["sample", share] => NamedRequirement::Sample {
                percent: percent(share).ok_or_else(|| {
                    UsageError::new(format!("'{share}' is no share: 1% to 100% are, as in 'sample 5%'"))
                })?,
            },
            ["quorum"] => {
                return Err(UsageError::new(
                    "say how many builders have to agree, and who is asked: 'quorum 2 --of ann --of bob'",
                ));
            }
            ["sample"] => {
                return Err(UsageError::new("say which share is built here again: 'sample 5%'"));
            }
            _ => {
                return Err(UsageError::new(format!(
                    "'{text}' is nothing that can be required: 'self', 'roster', 'quorum K' and 'sample P%' are"
                )));
            }
        };
        match &requirement {
            NamedRequirement::Quorum { of, .. } if of.is_empty() => Err(UsageError::new(
                "say which builders are asked: 'quorum 2 --of ann --of bob'; '--of self' is this node",
            )),
            NamedRequirement::Quorum { needed, of } if !can_be_had(*needed, of.len()) => {
                Err(UsageError::new(format!(
                    "'quorum {needed}' cannot be had of {} builders: name at least as many as have to agree, and at least one",
                    of.len()
                )))
            }
            NamedRequirement::Quorum { .. } => Ok(requirement),
            _ if !self.of.is_empty() => Err(UsageError::new(
                "--of names the builders of a quorum; for what one member built say --builder MEMBER",
            )),
            _ => Ok(requirement),
        }
    }
}

fn can_be_had(needed: u32, of: usize) -> bool {
    usize::try_from(needed).is_ok_and(|needed| (1..=of).contains(&needed))
}

fn percent(share: &str) -> Option<u8> {
    let percent = share.strip_suffix('%').unwrap_or(share).parse().ok()?;
    (1..=100).contains(&percent).then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str], of: &[&str]) -> Result<NamedRequirement, String> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let arguments = TrustArguments {
            require: owned(words),
            of: owned(of),
            rule: RuleOf {
                paths: None,
                builder: None,
            },
        };
        arguments.requirement().map_err(|error| error.to_string())
    }

    #[test]
    fn requirements_are_read_in_one_word_or_two() {
        assert_eq!(read(&["self"], &[]), Ok(NamedRequirement::Own));
        assert_eq!(read(&["roster"], &[]), Ok(NamedRequirement::Roster));
        for words in [&["quorum", "2"][..], &["quorum 2"]] {
            let of = vec!["ann".to_owned(), "bob".to_owned()];
            let quorum = NamedRequirement::Quorum { needed: 2, of };
            assert_eq!(read(words, &["ann", "bob"]), Ok(quorum));
        }
        for words in [&["sample", "5%"][..], &["sample 5"]] {
            assert_eq!(read(words, &[]), Ok(NamedRequirement::Sample { percent: 5 }));
        }
    }

    #[test]
    fn what_cannot_be_required_is_answered_with_what_can() {
        let cases: [(&[&str], &[&str], &str); 12] = [
            (&["everybody"], &[], "'self', 'roster', 'quorum K'"),
            (&["quorum"], &[], "quorum 2 --of"),
            (&["quorum", "two"], &["ann"], "'quorum two' is no quorum"),
            (&["quorum", "-1"], &["ann"], "is no quorum"),
            (&["quorum", "2"], &[], "which builders are asked"),
            (&["sample"], &[], "sample 5%"),
            (&["sample", "half"], &[], "'half' is no share"),
            (&["sample", "200%"], &[], "'200%' is no share"),
            (&["quorum", "2"], &["ann"], "cannot be had of 1 builders"),
            (&["quorum", "0"], &["ann"], "cannot be had of 1 builders"),
            (&["roster"], &["ann"], "--builder MEMBER"),
            (&["self", "roster"], &[], "nothing that can be required"),
        ];
        for (words, of, wanted) in cases {
            let error = read(words, of).expect_err(wanted);
            assert!(error.contains(wanted), "{words:?}: {error}");
        }
    }
}
