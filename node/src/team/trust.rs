//! The rules of trust that the owner of a node has set, kept in the home.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::trust::{RuleError, TrustPolicy, TrustRule};
use tvix_node_swarm::SwarmHandle;

use super::owner_file::{OwnerFileError, read_versioned, write_whole};
use super::policy::Grounds;
use super::roll::Roll;

/// Version of the file. A newer one is refused, and so is one that cannot be read: a node that went on with
/// laxer rules would believe what its owner does not.
const VERSION: u32 = 1;

/// Why the rules cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file system.
    #[error("the rules of trust in '{}' cannot be {action}: {source}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What is in it.
    #[error(
        "the rules of trust in '{}' cannot be understood: {reason}. Repair the file, or remove it to go back to what is \
         believed by default", .file.display()
    )]
    Damaged {
        /// Which.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Written by a newer program.
    #[error(
        "the rules of trust in '{}' are of version {found}, and this program knows version {VERSION}: use the program \
         that wrote them", .file.display()
    )]
    Newer {
        /// Which.
        file: PathBuf,
        /// Its version.
        found: u64,
    },
    /// A rule that is none.
    #[error(transparent)]
    Rule(#[from] RuleError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    rules: Vec<TrustRule>,
}

/// The rules, and what they are applied to.
pub struct TrustBook {
    file: PathBuf,
    me: NodeKey,
    policy: Mutex<Arc<TrustPolicy>>,
    /// Where the roles of members are to be looked up.
    roll: Arc<Roll>,
}

impl TrustBook {
    /// The rules of a home; none are set where it has no such file.
    ///
    /// # Errors
    /// See [`TrustError`].
    pub fn open(file: PathBuf, me: NodeKey, roll: Arc<Roll>) -> Result<Self, TrustError> {
        let policy = match fs::read(&file) {
            Ok(bytes) => read(&file, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => TrustPolicy::default(),
            Err(source) => {
                let action = "read";
                return Err(TrustError::File { file, action, source });
            }
        };
        Ok(Self {
            file,
            me,
            policy: Mutex::new(Arc::new(policy)),
            roll,
        })
    }

    /// The rules as they are now.
    pub fn policy(&self) -> Arc<TrustPolicy> {
        Arc::clone(&self.policy.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is to be judged on now where this node does something by itself.
    pub fn grounds(&self) -> Grounds {
        Grounds {
            members: self.roll.all().iter().map(SwarmHandle::members).collect(),
            policy: self.policy(),
            me: self.me,
        }
    }

    /// What is to be judged on now of what comes from a team: who is in another one has no say in it. Where the rules
    /// name this node, they mean the key that it has there.
    pub fn grounds_in(&self, swarm: &SwarmHandle) -> Grounds {
        let (policy, me) = (self.policy(), swarm.key());
        Grounds {
            members: vec![swarm.members()],
            policy: match me == self.me {
                true => policy,
                false => Arc::new(policy.renamed(self.me, me)),
            },
            me,
        }
    }

    /// Changes the rules; they hold once they are written down. Blocks.
    ///
    /// # Errors
    /// See [`TrustError`]; nothing has changed then.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&mut TrustPolicy) -> Result<T, RuleError>,
    ) -> Result<T, TrustError> {
        let mut current = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let mut policy = (**current).clone();
        let answer = change(&mut policy)?;
        if policy != **current {
            write(&self.file, &policy).map_err(|source| TrustError::File {
                file: self.file.clone(),
                action: "written",
                source,
            })?;
            *current = Arc::new(policy);
        }
        Ok(answer)
    }
}

fn read(file: &Path, bytes: &[u8]) -> Result<TrustPolicy, TrustError> {
    let damaged = |reason: String| TrustError::Damaged {
        file: file.to_owned(),
        reason,
    };
    let written: Written = read_versioned(bytes, VERSION).map_err(|error| match error {
        OwnerFileError::Newer { found, .. } => {
            let file = file.to_owned();
            TrustError::Newer { file, found }
        }
        OwnerFileError::Damaged(reason) => damaged(reason),
    })?;
    TrustPolicy::new(written.rules).map_err(|error| damaged(error.to_string()))
}

fn write(file: &Path, policy: &TrustPolicy) -> io::Result<()> {
    let written = Written {
        version: VERSION,
        rules: policy.rules().to_vec(),
    };
    write_whole(file, &serde_json::to_vec_pretty(&written)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tvix_node_protocol::trust::{PathPattern, Requirement};

    const ME: NodeKey = NodeKey([1; 32]);

    fn rule() -> TrustRule {
        TrustRule {
            paths: Some(PathPattern::new("*-openssl-*").unwrap()),
            builder: None,
            requirement: Requirement::Own,
            because: None,
        }
    }

    #[test]
    fn rules_are_there_again_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trust.json");
        let book = TrustBook::open(file.clone(), ME, Arc::default()).unwrap();
        assert!(book.policy().rules().is_empty());
        book.change(|policy| policy.set(rule())).unwrap();
        let again = TrustBook::open(file, ME, Arc::default()).unwrap();
        assert_eq!(again.policy().rules(), [rule()]);
        again
            .change(|policy| Ok(policy.unset(rule().paths.as_ref(), None)))
            .unwrap();
        assert!(again.policy().rules().is_empty());
    }

    #[test]
    fn rules_that_cannot_be_read_are_never_replaced_by_laxer_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trust.json");
        let refused = |text: &str| {
            fs::write(&file, text).unwrap();
            let error = TrustBook::open(file.clone(), ME, Arc::default())
                .err()
                .expect("it is refused");
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "it is left as it is");
            error.to_string()
        };
        assert!(refused("{").contains("cannot be understood"));
        assert!(refused(r#"{"rules":[]}"#).contains("which version"));
        assert!(refused(r#"{"version":7,"anything":1}"#).contains("of version 7"));
        assert!(refused(r#"{"version":1,"rules":[{"require":"everybody"}]}"#).contains("everybody"));
        let more = r#"{"version":1,"rules":[{"require":"roster","more":1}]}"#;
        assert!(refused(more).contains("more"));
        let pattern = r#"{"version":1,"rules":[{"paths":"a b","require":"self"}]}"#;
        assert!(refused(pattern).contains("no store path has"));
        let nobody = r#"{"version":1,"rules":[{"require":{"quorum":{"needed":2,"of":[]}}}]}"#;
        assert!(refused(nobody).contains("quorum of 2"));
    }

    #[test]
    fn a_change_that_cannot_be_written_does_not_hold() {
        let folder = tempfile::tempdir().unwrap();
        let book = TrustBook::open(folder.path().join("gone/trust.json"), ME, Arc::default()).unwrap();
        assert!(book.change(|policy| policy.set(rule())).is_err());
        assert!(book.policy().rules().is_empty());
    }
}
