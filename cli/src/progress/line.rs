//! Lines of text with tints, measured and cut in terminal columns.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// How a piece of a line looks where colours are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tint {
    /// As everything else.
    Plain,
    /// Stands out.
    Bold,
    /// Steps back.
    Dim,
    /// Went well.
    Good,
    /// Under way.
    Live,
    /// Worth a look.
    Warning,
    /// Went wrong.
    Bad,
}

impl Tint {
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("\x1b[1m"),
            Self::Dim => Some("\x1b[2m"),
            Self::Good => Some("\x1b[32m"),
            Self::Live => Some("\x1b[36m"),
            Self::Warning => Some("\x1b[33m"),
            Self::Bad => Some("\x1b[1;31m"),
        }
    }
}

/// One line: pieces of text, none of which holds a control character.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line(Vec<(Tint, String)>);

impl Line {
    /// A line without tints.
    pub fn plain(text: impl AsRef<str>) -> Self {
        Self::default().add(Tint::Plain, text)
    }

    /// Adds a piece at the end.
    #[must_use]
    pub fn add(mut self, tint: Tint, text: impl AsRef<str>) -> Self {
        self.0.push((tint, clean(text.as_ref())));
        self
    }

    /// Columns it takes.
    pub fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.width()).sum()
    }

    /// Cuts it to at most `columns` columns; what is cut ends in `…`.
    #[must_use]
    pub fn fit(self, columns: usize) -> Self {
        if self.width() <= columns {
            return self;
        }
        let mut left = columns.saturating_sub(1);
        let mut pieces = Vec::new();
        for (tint, text) in self.0 {
            let kept = prefix(&text, left);
            left -= kept.width();
            let cut = kept.len() < text.len();
            pieces.push((tint, kept.to_owned()));
            if cut {
                break;
            }
        }
        if columns > 0
            && let Some((_, last)) = pieces.last_mut()
        {
            last.push('…');
        }
        Self(pieces)
    }

    /// The text, without tints.
    #[cfg(test)]
    pub fn text(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }

    /// The text as a terminal is given it.
    pub fn render(&self, colours: bool) -> String {
        let mut rendered = String::new();
        for (tint, text) in &self.0 {
            match tint.code().filter(|_| colours && !text.is_empty()) {
                Some(code) => rendered.extend([code, text, "\x1b[0m"]),
                None => rendered.push_str(text),
            }
        }
        rendered
    }
}

fn prefix(text: &str, columns: usize) -> &str {
    let mut width = 0;
    for (index, letter) in text.char_indices() {
        width += letter.width().unwrap_or(0);
        if width > columns {
            return &text[..index];
        }
    }
    text
}

/// What of a text may be written to a terminal without it doing anything: escape sequences and
/// control characters are left out, a tab becomes a space, and of a line that overwrites itself (a
/// progress bar with carriage returns) the last state is kept.
pub fn clean(text: &str) -> String {
    let text = text.trim_end_matches('\r');
    let text = text.rsplit_once('\r').map_or(text, |(_, last)| last);
    let mut cleaned = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\x1b' => skip_escape(&mut letters),
            '\t' => cleaned.push(' '),
            _ if letter.is_control() || is_direction(letter) => {}
            _ => cleaned.push(letter),
        }
    }
    cleaned
}

/// Characters that change the direction of text: a log must not be able to make a line read as
/// another one.
const fn is_direction(letter: char) -> bool {
    matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Skips what follows an escape character (ECMA-48): a control sequence up to its final byte, a
/// string up to its end, or one character.
fn skip_escape(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match letters.next() {
        Some('[') => {
            for letter in letters.by_ref() {
                if ('\x40'..='\x7e').contains(&letter) {
                    break;
                }
            }
        }
        Some(']' | 'P' | '^' | '_' | 'X') => {
            while let Some(letter) = letters.next() {
                if letter == '\x07' {
                    break;
                }
                if letter == '\x1b' && letters.next_if_eq(&'\\').is_some() {
                    break;
                }
            }
        }
        Some(' '..='/') => {
            letters.next();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_command_the_terminal() {
        let cases = [
            ("plain", "plain"),
            ("\x1b[1;31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07after", "after"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b(Bcharset", "charset"),
            ("\x1bcreset", "reset"),
            ("10%\r50%\r100%", "100%"),
            ("100%\r", "100%"),
            ("a\tb\u{8}\u{0}c\u{9b}2J", "a bc2J"),
            ("abc\u{202e}fed", "abcfed"),
            ("\x1b[", ""),
            ("\x1b", ""),
        ];
        for (given, expected) in cases {
            assert_eq!(clean(given), expected, "{given:?}");
            assert_eq!(Line::plain(given).text(), expected);
        }
    }

    #[test]
    fn lines_are_cut_by_columns_not_bytes() {
        let line = Line::plain("ab").add(Tint::Good, "日本語");
        assert_eq!(line.width(), 8);
        assert_eq!(line.clone().fit(8).text(), "ab日本語");
        assert_eq!(line.clone().fit(7).text(), "ab日本…");
        assert_eq!(line.clone().fit(6).text(), "ab日…", "half a letter is not shown");
        assert_eq!(line.clone().fit(1).text(), "…");
        assert_eq!(line.clone().fit(0).text(), "");
        for columns in 0..9 {
            assert!(line.clone().fit(columns).width() <= columns);
        }
    }

    #[test]
    fn tints_are_shown_only_where_colours_are() {
        let line = Line::plain("a ").add(Tint::Bad, "b").add(Tint::Dim, "");
        assert_eq!(line.render(false), "a b");
        assert_eq!(line.render(true), "a \x1b[1;31mb\x1b[0m");
    }
}
