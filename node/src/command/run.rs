//! `run` and `shell`: programs of what was built, with the home's store in sight.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use tvix_node_store::Running;

use super::Notice;
use super::build::{BuiltTarget, build};
use super::error::CommandError;
use super::options::{Building, Evaluation};
use crate::home::Home;
use crate::namespace::enter_command;

/// How the program ended.
pub type Ran = ExitStatus;

/// Builds one target and runs a program of it: the one called `program`, else the only one, else the
/// one called like the package.
///
/// # Errors
/// See [`CommandError`].
pub async fn run_in_store(
    home: &Home,
    evaluation: &Evaluation,
    building: &Building,
    program: Option<&OsStr>,
    arguments: &[OsString],
    notice: &mut dyn FnMut(Notice),
) -> Result<Ran, CommandError> {
    let (targets, open) = build(home, evaluation, building, notice).await?;
    let [target] = targets.as_slice() else {
        let message = format!(
            "{} derivations were found; name the one to run with -A",
            targets.len()
        );
        return Err(CommandError::Usage(message));
    };
    let program = choose(home, target, program)?;
    let ran = spawn(home, &targets, &program, arguments, None).await;
    if let Some(open) = open {
        open.close().await;
    }
    ran
}

/// Builds the targets and runs a program (`$SHELL` by default) with their `bin` folders first in
/// `PATH`.
///
/// # Errors
/// See [`CommandError`].
pub async fn run_shell(
    home: &Home,
    evaluation: &Evaluation,
    building: &Building,
    command: &[OsString],
    notice: &mut dyn FnMut(Notice),
) -> Result<Ran, CommandError> {
    let (targets, open) = build(home, evaluation, building, notice).await?;
    let mut folders: Vec<PathBuf> = targets
        .iter()
        .map(|target| Path::new(&target.path.to_absolute_path()).join("bin"))
        .collect();
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let path = std::env::join_paths(folders)
        .map_err(|error| CommandError::Usage(format!("PATH cannot be extended: {error}")))?;
    let (program, arguments) = match command {
        [program, arguments @ ..] => (program.clone(), arguments),
        [] => (
            std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()),
            &[][..],
        ),
    };
    let ran = spawn(home, &targets, Path::new(&program), arguments, Some(&path)).await;
    if let Some(open) = open {
        open.close().await;
    }
    ran
}

/// Runs a program that uses what the targets are. The session has kept that so far, and it ends with the node.
async fn spawn(
    home: &Home,
    targets: &[BuiltTarget],
    program: &Path,
    arguments: &[OsString],
    path: Option<&OsStr>,
) -> Result<Ran, CommandError> {
    let failed = |source| CommandError::Io {
        what: format!("'{}' cannot be run", program.display()),
        source,
    };
    let mut command = enter_command(&home.store_folder(), program, arguments).map_err(failed)?;
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let paths = targets.iter().map(|target| target.path.clone()).collect();
    // Until the program, and what it leaves in the background, has ended.
    let running = Running::begin(home.root(), &paths)?;
    running.inherit(true)?;
    let child = tokio::process::Command::from(command).spawn();
    running.inherit(false)?;
    let mut child = child.map_err(failed)?;
    loop {
        tokio::select! {
            status = child.wait() => return status.map_err(failed),
            // The terminal sends an interrupt to the program, too, which decides what it means.
            _ = tokio::signal::ctrl_c() => {}
        }
    }
}

/// The program to run, as seen with the store in sight.
fn choose(home: &Home, target: &BuiltTarget, wanted: Option<&OsStr>) -> Result<PathBuf, CommandError> {
    let folder = Path::new(&target.path.to_absolute_path()).join("bin");
    let physical = home.store_folder().join(target.path.to_basename()).join("bin");
    let mut programs = programs_in(&physical).map_err(|source| CommandError::Io {
        what: format!("{} has no programs (no folder bin)", target.path),
        source,
    })?;
    programs.sort();
    let list = || {
        let names: Vec<_> = programs
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.join(", ")
    };
    if let Some(wanted) = wanted {
        return if programs.iter().any(|name| name == wanted) {
            Ok(folder.join(wanted))
        } else {
            Err(CommandError::Usage(format!(
                "{} has no program '{}'; it has: {}",
                target.path,
                wanted.display(),
                list()
            )))
        };
    }
    let package = package_of(&target.name);
    match programs.as_slice() {
        [] => Err(CommandError::Usage(format!("{} has no programs", target.path))),
        [only] => Ok(folder.join(only)),
        several if several.iter().any(|name| name == package) => Ok(folder.join(package)),
        _ => Err(CommandError::Usage(format!(
            "{} has several programs; choose one with --program: {}",
            target.path,
            list()
        ))),
    }
}

fn programs_in(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut programs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // A link may point into the store, which is not in sight yet.
        let kind = entry.file_type()?;
        if kind.is_symlink() || kind.is_file() && entry.metadata()?.permissions().mode() & 0o111 != 0 {
            programs.push(entry.file_name());
        }
    }
    Ok(programs)
}

/// The name without its version: everything before the first dash that no letter follows, as
/// `builtins.parseDrvName` has it.
fn package_of(name: &str) -> &str {
    let bytes = name.as_bytes();
    let end = (1..bytes.len()).find(|&at| bytes[at - 1] == b'-' && !bytes[at].is_ascii_alphabetic());
    end.map_or(name, |at| &name[..at - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_called_like_its_name_without_version() {
        assert_eq!(package_of("hello-2.10"), "hello");
        assert_eq!(package_of("hello"), "hello");
        assert_eq!(package_of("gcc-wrapper-9.3.0"), "gcc-wrapper");
    }
}
