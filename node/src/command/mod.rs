//! What the commands of the program do, without arguments parsed and without anything printed.

mod build;
mod error;
mod evaluate;
mod evaluation;
mod options;
mod run;
mod session;

pub use build::{BuiltTarget, run_build};
pub use error::CommandError;
pub use evaluate::{run_eval, run_instantiate};
pub use options::{Building, Evaluation, Expression};
pub use run::{Ran, run_in_store, run_shell};
pub use tvix_node_evaluator::{Argument, Format, MessageKind, Reading, Rendered};

use tvix_node_protocol::control::Event;

/// What a command tells while it runs.
#[derive(Debug)]
pub enum Notice {
    /// A step of the session.
    Step(Event),
    /// A trace or warning of the evaluation.
    Message(MessageKind, String),
    /// A target, or a member of one, could not be evaluated.
    EvaluationFailed {
        /// What the user called it.
        name: String,
        /// The error.
        error: Rendered,
    },
    /// The printed value of a target.
    Value {
        /// Number of the target.
        target: usize,
        /// Without a final newline.
        text: Vec<u8>,
    },
}
