//! `build`: to the outputs of the targets, and links to them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tvix_node_evaluator::Action;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{AddRoot, Outcome, SessionMode};
use tvix_node_protocol::nix::store_path::STORE_DIR;

use super::Notice;
use super::error::CommandError;
use super::evaluation::prepare;
use super::options::{Building, Evaluation};
use super::session::{Open, Opening, run};
use crate::home::Home;

/// One derivation that was asked for, built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltTarget {
    /// Attribute path of it.
    pub attribute: String,
    /// Its `name`.
    pub name: String,
    /// The derivation.
    pub derivation: StorePath,
    /// The output asked for.
    pub output: String,
    /// Its path.
    pub path: StorePath,
}

/// Builds the targets, makes the links, and gives the outputs in the order of the targets. In a dry
/// run there are none.
///
/// # Errors
/// See [`CommandError`]. With `--keep-going`, what could be built is in the store all the same.
pub async fn run_build(
    home: &Home,
    evaluation: &Evaluation,
    building: &Building,
    notice: &mut dyn FnMut(Notice),
) -> Result<Vec<BuiltTarget>, CommandError> {
    if let (Some(link), false) = (&building.out_link, building.dry_run) {
        check_link(home, link)?;
    }
    let (targets, open) = build(home, evaluation, building, notice).await?;
    if let Some(open) = open {
        if let (Some(link), false) = (&building.out_link, building.dry_run) {
            make_links(&open, link, &targets).await?;
        }
        open.close().await;
    }
    Ok(targets)
}

/// Builds the targets; what they made is kept as long as the session is.
pub(super) async fn build(
    home: &Home,
    evaluation: &Evaluation,
    building: &Building,
    notice: &mut dyn FnMut(Notice),
) -> Result<(Vec<BuiltTarget>, Option<Open>), CommandError> {
    let prepared = prepare(home, evaluation, Action::Instantiate)?;
    let mode = if building.dry_run {
        SessionMode::DryRun
    } else if building.check {
        SessionMode::Check
    } else {
        SessionMode::Build
    };
    let ended = run(home, mode, Opening::Now, building, prepared, notice).await?;
    match ended.outcome {
        Some(Outcome::BuildFailed) => {
            let what = match mode {
                SessionMode::Check => "not everything is the same when built again",
                _ => "not everything could be built",
            };
            return Err(CommandError::BuildFailed(what.to_owned()));
        }
        // The user's own interruption is not waited for.
        Some(Outcome::Interrupted) => return Err(CommandError::Stopped),
        _ if ended.failures > 0 => {
            super::evaluate::evaluated(ended, evaluation)?;
            return Ok((Vec::new(), None));
        }
        Some(Outcome::EvaluationFailed) => return Err(CommandError::Evaluation("the expression".to_owned())),
        Some(Outcome::Success) => {}
        None => return Err(CommandError::Broken(home.background_log())),
    }
    let mut targets = Vec::new();
    if !building.dry_run {
        for (named, outputs) in ended.derivations.into_iter().zip(ended.outputs) {
            let Some(path) = outputs.and_then(|outputs| outputs.get(&named.output_name).cloned()) else {
                return Err(CommandError::Broken(home.background_log()));
            };
            targets.push(BuiltTarget {
                attribute: named.attribute,
                name: named.name,
                derivation: named.drv_path,
                output: named.output_name,
                path,
            });
        }
    }
    Ok((targets, ended.keep))
}

/// Says at once what would otherwise be found out after the build: something that is no link into the store has the name.
fn check_link(home: &Home, link: &Path) -> Result<(), CommandError> {
    let is_free = match std::fs::read_link(link) {
        Ok(target) => target.starts_with(home.store_folder()) || target.starts_with(STORE_DIR),
        // What is there is no link.
        Err(error) => error.kind() != std::io::ErrorKind::InvalidInput,
    };
    let folder = link.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        let missing = format!(
            "there is no folder '{}'; make it, or choose another name ('-o')",
            folder.display()
        );
        return Err(CommandError::Link {
            link: link.to_owned(),
            source: std::io::Error::other(missing),
        });
    }
    let occupied = "it exists and is not a link into this store; remove it, or choose another name ('-o')";
    match is_free {
        true => Ok(()),
        false => Err(CommandError::Link {
            link: link.to_owned(),
            source: std::io::Error::other(occupied),
        }),
    }
}

/// Makes `result`, `result-2`, …, with the output's name behind it where that is not `out`, as
/// `nix-build` does. The node makes them: a link is a root from the moment it is there.
async fn make_links(open: &Open, link: &Path, targets: &[BuiltTarget]) -> Result<(), CommandError> {
    let mut derivations: Vec<&StorePath> = Vec::new();
    for target in targets {
        let position = derivations.iter().position(|known| **known == target.derivation);
        let number = position.unwrap_or_else(|| {
            derivations.push(&target.derivation);
            derivations.len() - 1
        });
        let mut name = OsString::from(link);
        if number > 0 {
            name.push(format!("-{}", number + 1));
        }
        if target.output != "out" {
            name.push(format!("-{}", target.output));
        }
        make_link(open, PathBuf::from(name), &target.path).await?;
    }
    Ok(())
}

async fn make_link(open: &Open, link: PathBuf, path: &StorePath) -> Result<(), CommandError> {
    let failed = |source| CommandError::Link {
        link: link.clone(),
        source,
    };
    let absolute = std::path::absolute(&link).map_err(failed)?;
    let text = absolute
        .to_str()
        .ok_or_else(|| failed(std::io::Error::other("its name is not UTF-8")))?;
    open.client
        .add_root(&AddRoot {
            link: text.to_owned(),
            path: path.clone(),
        })
        .await?;
    Ok(())
}
