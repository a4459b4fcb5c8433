//! What the tests of this folder share: paths, and a terminal that remembers what it shows.

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildKind;
use tvix_node_protocol::control::{Event, EventKind};

use super::THIS_NODE;
use super::frame::Size;

pub fn drv(name: &str) -> StorePath {
    let mut digest = [0; 20];
    for (index, byte) in name.bytes().enumerate() {
        digest[index % 20] ^= byte;
    }
    StorePath::from_parts(digest, &format!("{name}.drv")).unwrap()
}

pub fn event(kind: EventKind) -> Event {
    Event { at: 0, kind }
}

pub fn instantiated(names: &[&str]) -> Event {
    let derivations = names.iter().map(|name| drv(name)).collect();
    event(EventKind::Instantiated { derivations })
}

pub fn placed(name: &str, kind: BuildKind) -> Event {
    event(EventKind::Placed {
        derivation: drv(name),
        node: THIS_NODE.to_owned(),
        reason: "the only builder".to_owned(),
        demanded: true,
        kind,
    })
}

pub fn started(name: &str, node: &str) -> Event {
    event(EventKind::BuildStarted {
        derivation: drv(name),
        node: node.to_owned(),
    })
}

pub fn logged(name: &str, line: &str) -> Event {
    event(EventKind::Log {
        derivation: drv(name),
        line: line.to_owned(),
    })
}

pub fn finished(name: &str, duration: u64) -> Event {
    event(EventKind::BuildFinished {
        derivation: drv(name),
        node: THIS_NODE.to_owned(),
        outputs: [("out".to_owned(), drv(name))].into(),
        duration,
    })
}

/// A terminal, as far as this program commands one. Letters are one column wide.
pub struct Emulator {
    size: Size,
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Emulator {
    pub fn new(size: Size) -> Self {
        Self {
            size,
            rows: vec![Vec::new()],
            row: 0,
            column: 0,
        }
    }

    pub fn write(&mut self, text: &str) {
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '\r' => self.column = 0,
                '\n' => self.down(),
                '\x1b' => {
                    assert_eq!(letters.next(), Some('['), "only control sequences are used");
                    let mut parameters = String::new();
                    let command = loop {
                        let letter = letters.next().expect("a whole sequence");
                        if letter.is_ascii_alphabetic() {
                            break letter;
                        }
                        parameters.push(letter);
                    };
                    self.command(&parameters, command);
                }
                _ => self.put(letter),
            }
        }
    }

    fn command(&mut self, parameters: &str, command: char) {
        match command {
            'A' => {
                let up: usize = parameters.parse().unwrap();
                assert!(up <= self.row, "moved above what was ever written");
                let top = self.rows.len().saturating_sub(self.size.rows);
                self.row = self.row.saturating_sub(up).max(top);
            }
            'K' => self.rows[self.row].truncate(self.column),
            'J' => {
                self.rows[self.row].truncate(self.column);
                self.rows.truncate(self.row + 1);
            }
            'm' | 'h' | 'l' => {}
            other => panic!("unknown command {other}"),
        }
    }

    fn put(&mut self, letter: char) {
        if self.column == self.size.columns {
            self.column = 0;
            self.down();
        }
        let row = &mut self.rows[self.row];
        row.resize(row.len().max(self.column + 1), ' ');
        row[self.column] = letter;
        self.column += 1;
    }

    fn down(&mut self) {
        self.row += 1;
        if self.row == self.rows.len() {
            self.rows.push(Vec::new());
        }
    }

    /// Makes it narrower or wider; rows that no longer fit are wrapped.
    pub fn resize(&mut self, size: Size) {
        assert_eq!(self.column, 0);
        let mut rows = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            if index == self.row {
                self.row = rows.len();
            }
            if row.is_empty() {
                rows.push(Vec::new());
            }
            rows.extend(row.chunks(size.columns).map(<[char]>::to_vec));
            if index == self.row && index + 1 == self.rows.len() {
                break;
            }
        }
        self.row = rows.len() - 1;
        self.rows = rows;
        self.size = size;
    }

    /// Everything written so far, as rows, without the one of the cursor.
    pub fn shown(&self) -> Vec<String> {
        let mut rows: Vec<String> = self.rows.iter().map(|row| row.iter().collect()).collect();
        assert_eq!(
            rows.pop().as_deref(),
            Some(""),
            "the cursor stands in an empty row"
        );
        rows
    }
}
