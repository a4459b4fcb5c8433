//! The `tvix-node` program: arguments in, progress and exit status out.
//!
//! What the commands do is the crate `tvix_node`'s; here is what a user types and sees. Results go to
//! standard output, everything else to standard error.

mod arguments;
mod commands;
mod errors;
mod progress;

use std::ffi::OsString;
use std::process::ExitCode;

use arguments::{Parsed, parse};
use commands::Failure;

fn main() -> ExitCode {
    // Sandboxes are this program, too, and must not have threads.
    tvix_node::take_over();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let result = match parse(&arguments) {
        Ok(Parsed::Help(text)) => commands::print(text.as_bytes()).map(|()| 0),
        Ok(Parsed::Invocation(invocation, matches)) => commands::perform(*invocation, &matches),
        Err(error) => Err(error.into()),
    };
    let status = result.unwrap_or_else(|failure| {
        if let Failure::Told(status) = failure {
            return status;
        }
        progress::show_error(&failure);
        failure.exit_status()
    });
    ExitCode::from(status)
}
