//! Errors of an evaluation.

/// An error made readable: what the command prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The message alone, one line or more, without position and trace.
    pub message: String,
    /// Message, position, source line with a caret and the trace, as Nix prints them, without colours;
    /// begins with `error:`.
    pub text: String,
}
