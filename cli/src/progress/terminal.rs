//! What standard error is: a terminal, and what it can do.

use std::io::{IsTerminal as _, Write as _};

use super::frame::Size;

/// Size of a terminal that does not tell it.
const DEFAULT_SIZE: Size = Size {
    columns: 80,
    rows: 24,
};

/// What may be done with standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Lines can be redrawn in place.
    pub redraws: bool,
    /// Colours may be used.
    pub colours: bool,
}

impl Terminal {
    /// What this process's standard error is. `NO_COLOR` (<https://no-color.org>) and `TERM=dumb` are
    /// respected.
    pub fn of_stderr() -> Self {
        let term = std::env::var_os("TERM").unwrap_or_default();
        let no_color = std::env::var_os("NO_COLOR").unwrap_or_default();
        Self::new(
            std::io::stderr().is_terminal(),
            &term.to_string_lossy(),
            &no_color.to_string_lossy(),
        )
    }

    fn new(terminal: bool, term: &str, no_color: &str) -> Self {
        let redraws = terminal && !matches!(term, "" | "dumb");
        Self {
            redraws,
            colours: redraws && no_color.is_empty(),
        }
    }
}

/// How large the terminal is now.
pub fn size() -> Size {
    match rustix::termios::tcgetwinsize(rustix::stdio::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size {
            columns: usize::from(size.ws_col),
            rows: usize::from(size.ws_row),
        },
        _ => DEFAULT_SIZE,
    }
}

/// Writes to standard error. There is nobody to tell that it cannot be written to.
pub fn write(bytes: &[u8]) {
    let mut stderr = std::io::stderr().lock();
    drop(stderr.write_all(bytes).and_then(|()| stderr.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_that_can_is_redrawn_and_coloured() {
        let is = |redraws, colours| Terminal { redraws, colours };
        assert_eq!(Terminal::new(true, "xterm", ""), is(true, true));
        assert_eq!(Terminal::new(true, "xterm", "1"), is(true, false));
        assert_eq!(Terminal::new(true, "dumb", ""), is(false, false));
        assert_eq!(Terminal::new(true, "", ""), is(false, false));
        assert_eq!(Terminal::new(false, "xterm", ""), is(false, false));
    }
}
