//! What each command does with its arguments, and what it prints.
//!
//! | file | what it has |
//! |---|---|
//! | `evaluate` | `instantiate` and `eval` |
//! | `build` | `build`, `run` and `shell` |
//! | `store` | `store info`, `log` and `why` |
//! | `exchange` | `store add`, `export` and `import` |
//! | `pins` | `store pin`, `unpin` and `pins` |
//! | `relations` | the other commands of `store` |
//! | `record` | `record` |
//! | `team` | `invite`, `join`, `teams`, `members`, `peers`, `renew` and `leave` |
//! | `founders` | `founder-key`, `revoke`, and what is said of founders |
//! | `trust`, `private`, `doctor`, `share`, `traffic` | what their names say |
//! | `node` | `up`, `down` and `status` |
//! | `table` | rows in columns, sizes and dates |
//! | `path` | store paths, as users name them |
//! | `failure` | why a command failed, and its exit status |

mod build;
mod doctor;
mod evaluate;
mod exchange;
mod failure;
mod founders;
mod node;
mod path;
mod pins;
mod private;
mod record;
mod relations;
mod share;
mod store;
mod table;
mod team;
mod traffic;
mod trust;

use std::io::{self, Write as _};

use clap::ArgMatches;
use tvix_node::command::{CommandError, Notice};
use tvix_node::home::Home;

pub use failure::Failure;
use relations::Relation;

use crate::arguments::{Command, Invocation, OutputArguments, StoreCommand, TrustCommand};
use crate::progress::Progress;

/// Threads of the runtime for commands that are clients: one waits for the node, one feeds it. The
/// evaluation has a thread of its own.
const CLIENT_THREADS: usize = 2;

/// Does what the command line says. The answer is the exit status.
///
/// # Errors
/// See [`Failure`]; one that is [`Failure::Told`] has been shown already.
pub fn perform(invocation: Invocation, matches: &ArgMatches) -> Result<u8, Failure> {
    let home = Home::locate()?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if !matches!(invocation.command, Command::Up { .. }) {
        builder.worker_threads(CLIENT_THREADS);
    }
    let runtime = builder.enable_all().build().map_err(|source| Failure::Process {
        what: "start its threads",
        source,
    })?;
    let result = runtime.block_on(dispatch(&home, invocation.command, matches));
    // An evaluation that was interrupted is not waited for.
    runtime.shutdown_background();
    result
}

async fn dispatch(home: &Home, command: Command, matches: &ArgMatches) -> Result<u8, Failure> {
    match command {
        Command::Build {
            evaluation,
            building,
            links,
            dry_run,
            check,
            output,
        } => {
            let evaluation = evaluation.to_evaluation(matches)?;
            let mut building = building.to_building();
            building.dry_run = dry_run;
            building.check = check;
            // What is in another store cannot be linked to.
            building.out_link = (!links.no_out_link && links.to.is_none()).then_some(links.out_link);
            building.to = links.to;
            building.private = links.private;
            build::build(home, &evaluation, &building, &output).await
        }
        Command::Instantiate {
            evaluation,
            building,
            output,
        } => {
            let evaluation = evaluation.to_evaluation(matches)?;
            evaluate::instantiate(home, &evaluation, &building.to_building(), &output).await
        }
        Command::Eval {
            evaluation,
            format,
            output,
        } => evaluate::eval(home, &evaluation.to_evaluation(matches)?, &format, &output).await,
        Command::Run {
            evaluation,
            building,
            output,
            program,
            arguments,
        } => {
            let evaluation = evaluation.to_evaluation(matches)?;
            let building = building.to_building();
            build::run(
                home,
                &evaluation,
                &building,
                &output,
                program.as_deref(),
                &arguments,
            )
            .await
        }
        Command::Shell {
            evaluation,
            building,
            output,
            command,
        } => {
            let evaluation = evaluation.to_evaluation(matches)?;
            build::shell(home, &evaluation, &building.to_building(), &output, &command).await
        }
        Command::Store { command } => dispatch_store(home, command).await,
        Command::Log { path } => store::log(home, &path).await,
        Command::Why { path, json } => store::why(home, &path, json).await,
        Command::Record { path, json } => record::record(home, &path, json).await,
        Command::Invite { invite } => team::invite(home, &invite).await,
        Command::Join { join } => team::join(home, &join).await,
        Command::FounderKey { json } => founders::founder_key(home, json).await,
        Command::Teams { json } => team::teams(home, json).await,
        Command::Members { team, json } => team::members(home, &team, json).await,
        Command::Peers { team, json } => team::peers(home, &team, json).await,
        Command::Revoke { member, team } => founders::revoke(home, member, team).await,
        Command::Renew { renew } => team::renew(home, &renew).await,
        Command::Trust { command, json } => {
            let command = command.unwrap_or(TrustCommand::Show { json });
            trust::trust(home, command).await
        }
        Command::Private { command } => private::private(home, command).await,
        Command::Share { share } => share::share(home, &share).await,
        Command::Traffic { traffic } => traffic::traffic(home, &traffic).await,
        Command::Doctor { json } => doctor::doctor(home, json).await,
        Command::Leave { team, force } => team::leave(home, team, force).await,
        Command::Status { json } => node::status(home, json).await,
        Command::Up { up } => node::up(home, &up).await,
        Command::Down => node::down(home).await,
    }
}

async fn dispatch_store(home: &Home, command: StoreCommand) -> Result<u8, Failure> {
    match command {
        StoreCommand::Add { place, name } => exchange::add(home, &place, name).await,
        StoreCommand::Export { paths, nar } => exchange::export(home, &paths, nar).await,
        StoreCommand::Import { nar } => exchange::import(home, nar).await,
        StoreCommand::Info { path, json } => store::info(home, &path, json).await,
        StoreCommand::References { paths } => relations::related(home, Relation::References, &paths).await,
        StoreCommand::Referrers { paths } => relations::related(home, Relation::Referrers, &paths).await,
        StoreCommand::Closure { paths } => relations::related(home, Relation::Closure, &paths).await,
        StoreCommand::Deriver { paths } => relations::related(home, Relation::Deriver, &paths).await,
        StoreCommand::WhyDepends { path, needed } => relations::why_depends(home, &path, &needed).await,
        StoreCommand::Diff { before, after } => relations::diff(home, &before, &after).await,
        StoreCommand::Du { paths, json } => relations::usage(home, &paths, json).await,
        StoreCommand::Pin { paths } => pins::pin(home, &paths).await,
        StoreCommand::Unpin { paths } => pins::unpin(home, &paths).await,
        StoreCommand::Pins { json } => pins::list(home, json).await,
        StoreCommand::Gc { collect } => relations::collect(home, &collect).await,
        StoreCommand::Verify { paths, repair, json } => relations::verify(home, &paths, repair, json).await,
    }
}

/// Runs a command's work while its progress is shown. An error is shown with it.
async fn with_progress<T>(
    output: &OutputArguments,
    builds: bool,
    work: impl AsyncFnOnce(&mut dyn FnMut(Notice)) -> Result<T, CommandError>,
) -> Result<T, Failure> {
    let mut progress = Progress::start(output.log_format, builds);
    let result = work(&mut |notice| progress.notice(&notice)).await;
    progress.finish(result.as_ref().err());
    result.map_err(|error| Failure::Told(error.exit_status()))
}

/// Writes results to standard output. That nobody reads them any more is no error.
///
/// # Errors
/// [`Failure::Process`] where they cannot be written, on a full disk for example.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Process {
            what: "write to standard output",
            source,
        }),
        _ => Ok(()),
    }
}

/// Says something about a result to a person, on standard error.
fn note(text: &str) {
    let mut stderr = io::stderr().lock();
    // There is nobody to tell that it cannot be written to.
    drop(writeln!(stderr, "{text}"));
}

/// Writes a value as JSON to standard output.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(|source| Failure::Process {
        what: "write its answer as JSON",
        source: source.into(),
    })?;
    text.push('\n');
    print(text.as_bytes())
}
