//! `build`, `run` and `shell`.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt as _;

use tvix_node::command::{Building, Evaluation, Ran, run_build, run_in_store, run_shell};
use tvix_node::home::Home;

use super::{Failure, print, with_progress};
use crate::arguments::OutputArguments;

/// Builds, and prints the outputs, one a line.
pub async fn build(
    home: &Home,
    evaluation: &Evaluation,
    building: &Building,
    output: &OutputArguments,
) -> Result<u8, Failure> {
    let targets = with_progress(output, true, async |notice| {
        run_build(home, evaluation, building, notice).await
    })
    .await?;
    let text: String = targets
        .into_iter()
        .map(|target| format!("{}\n", target.path))
        .collect();
    print(text.as_bytes())?;
    Ok(0)
}

/// Builds, and runs a program of the result. Its status is the command's.
pub async fn run(
    home: &Home,
    evaluation: &Evaluation,
    building: &Building,
    output: &OutputArguments,
    program: Option<&OsStr>,
    arguments: &[OsString],
) -> Result<u8, Failure> {
    let ran = with_progress(output, true, async |notice| {
        run_in_store(home, evaluation, building, program, arguments, notice).await
    })
    .await?;
    Ok(status(ran))
}

/// Builds, and runs a shell or command with the results in `PATH`. Its status is the command's.
pub async fn shell(
    home: &Home,
    evaluation: &Evaluation,
    building: &Building,
    output: &OutputArguments,
    command: &[OsString],
) -> Result<u8, Failure> {
    let ran = with_progress(output, true, async |notice| {
        run_shell(home, evaluation, building, command, notice).await
    })
    .await?;
    Ok(status(ran))
}

/// The status of a program as shells tell it: 128 and the signal where one killed it.
fn status(ran: Ran) -> u8 {
    let status = ran
        .code()
        .or_else(|| ran.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    u8::try_from(status).unwrap_or(1)
}
