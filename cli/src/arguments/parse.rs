//! From the command line to an [`Invocation`].

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};

use super::Invocation;
use super::evaluation::second_file;
use super::nix_flags::refusal;

/// The command line asks for something that cannot be. The message says what and what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    /// With this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// What a command line came to.
#[derive(Debug)]
pub enum Parsed {
    /// A command, and the raw matches of it, which know the order of its flags.
    Invocation(Box<Invocation>, ArgMatches),
    /// The user asked for help or the version: this text, on standard output.
    Help(String),
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// Whatever is not understood, by name.
pub fn parse(arguments: &[OsString]) -> Result<Parsed, UsageError> {
    let parsed = Invocation::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Ok((Invocation::from_arg_matches(&matches)?, matches)));
    match parsed {
        Ok((invocation, matches)) => {
            let of_command = matches.subcommand().map(|(_, matches)| matches.clone());
            Ok(Parsed::Invocation(
                Box::new(invocation),
                of_command.unwrap_or(matches),
            ))
        }
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Parsed::Help(error.to_string())),
            _ => Err(explain(&error, arguments)),
        },
    }
}

fn explain(error: &clap::Error, arguments: &[OsString]) -> UsageError {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return UsageError::new(format!("no command was given\n{error}"));
    }
    let command = match arguments.get(1).and_then(|name| name.to_str()) {
        Some(name) if !name.starts_with('-') => format!("tvix-node {name}"),
        _ => "tvix-node".to_owned(),
    };
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg)
    {
        return UsageError::new(unknown(&command, argument, error, arguments));
    }
    // The text begins with "error: ", which is written by whoever shows it.
    let text = error.to_string();
    UsageError::new(text.strip_prefix("error: ").unwrap_or(&text).trim_end())
}

fn unknown(command: &str, argument: &str, error: &clap::Error, arguments: &[OsString]) -> String {
    if !argument.starts_with('-') {
        let evaluates =
            ["build", "instantiate", "eval", "run", "shell"].map(|name| format!("tvix-node {name}"));
        return if evaluates.iter().any(|name| name == command) {
            second_file(argument)
        } else {
            format!("'{command}' does not take '{argument}'; '{command} --help' says what it takes")
        };
    }
    if let Some(message) = refusal(command, argument, following(argument, arguments)) {
        return message;
    }
    let similar = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(flag)) => format!("did you mean '{flag}'? "),
        _ => String::new(),
    };
    format!("'{command}' has no option '{argument}': {similar}'{command} --help' lists those it has")
}

/// What stands behind a flag on the command line.
fn following<'a>(flag: &str, arguments: &'a [OsString]) -> Option<&'a str> {
    let at = arguments
        .iter()
        .position(|argument| argument == OsStr::new(flag))?;
    arguments.get(at + 1)?.to_str()
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
