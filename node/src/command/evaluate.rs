//! `instantiate` and `eval`.

use tvix_node_evaluator::{Action, Format};
use tvix_node_protocol::control::{Outcome, SessionMode};

use super::Notice;
use super::error::CommandError;
use super::evaluation::prepare;
use super::options::{Building, Evaluation};
use super::session::{Ended, Opening, run};
use crate::home::Home;

/// Writes the derivations of the targets to the store and gives their paths, as `nix-instantiate`
/// prints them (with `!OUTPUT` where an output other than `out` is selected).
///
/// # Errors
/// See [`CommandError`].
pub async fn run_instantiate(
    home: &Home,
    evaluation: &Evaluation,
    building: &Building,
    notice: &mut dyn FnMut(Notice),
) -> Result<Vec<String>, CommandError> {
    let prepared = prepare(home, evaluation, Action::Instantiate)?;
    let ended = run(
        home,
        SessionMode::Instantiate,
        Opening::Now,
        building,
        prepared,
        notice,
    )
    .await?;
    let paths = ended
        .derivations
        .iter()
        .map(|named| match named.output_name.as_str() {
            "" | "out" => named.drv_path.to_string(),
            output => format!("{}!{output}", named.drv_path),
        })
        .collect();
    evaluated(ended, evaluation)?;
    Ok(paths)
}

/// Prints values: each comes as [`Notice::Value`]. A node is started only where the evaluation needs
/// the store.
///
/// # Errors
/// See [`CommandError`].
pub async fn run_eval(
    home: &Home,
    evaluation: &Evaluation,
    format: Format,
    notice: &mut dyn FnMut(Notice),
) -> Result<(), CommandError> {
    let prepared = prepare(home, evaluation, Action::Print(format))?;
    let building = Building::default();
    let ended = run(
        home,
        SessionMode::Instantiate,
        Opening::WhenNeeded,
        &building,
        prepared,
        notice,
    )
    .await?;
    evaluated(ended, evaluation)
}

/// Ends in an error where a target could not be evaluated.
pub(super) fn evaluated(ended: Ended, evaluation: &Evaluation) -> Result<(), CommandError> {
    if ended.outcome == Some(Outcome::BuildFailed) {
        return Err(CommandError::BuildFailed(
            "the evaluation needs something that could not be built".to_owned(),
        ));
    }
    if ended.node_failed {
        return Err(CommandError::BuildFailed(
            "the node could not do what the evaluation needs".to_owned(),
        ));
    }
    match ended.failures {
        0 => Ok(()),
        1 if evaluation.attributes.len() == 1 => {
            Err(CommandError::Evaluation(evaluation.attributes[0].clone()))
        }
        1 => Err(CommandError::Evaluation("the expression".to_owned())),
        count => Err(CommandError::Evaluation(format!("{count} targets"))),
    }
}
