//! Progress for programs: events as they are, one JSON object a line.

use tvix_node::command::{MessageKind, Notice};
use tvix_node_protocol::control::{Event, EventKind};

use super::terminal;

/// Writes events to standard error.
#[derive(Debug, Default)]
pub struct JsonLines {
    /// Time of the last event: what the command itself has to say has no time of the session.
    at: u64,
}

impl JsonLines {
    /// Writes what a command tells.
    pub fn notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Step(event) => {
                self.at = event.at;
                write(event);
            }
            Notice::Message(MessageKind::Trace, text) => self.message("info", format!("trace: {text}")),
            Notice::Message(MessageKind::Warning, text) => self.message("warning", text.clone()),
            Notice::EvaluationFailed { error, .. } => self.message("error", error.text.clone()),
            Notice::Value { .. } => {}
        }
    }

    /// Writes a message of the command.
    pub fn message(&self, level: &str, text: String) {
        write(&Event {
            at: self.at,
            kind: EventKind::Message {
                level: level.to_owned(),
                text,
            },
        });
    }
}

fn write(event: &Event) {
    // Numbers, strings and lists of them can always be written.
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        terminal::write(&line);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The examples of the documentation are what is written, and none is missing.
    #[test]
    fn every_event_is_documented_as_it_is() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/events.md");
        let text = std::fs::read_to_string(file).unwrap();
        let mut documented = BTreeSet::new();
        for line in text.lines().filter(|line| line.starts_with('{')) {
            let event: Event = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_value(&event).unwrap(), value, "{line}");
            let name = value["event"].as_str().unwrap().to_owned();
            assert!(text.contains(&format!("`{name}`")), "{name} is explained");
            documented.insert(name);
        }
        // A name that does not exist makes serde list those that do.
        let unknown = serde_json::from_str::<Event>(r#"{"at":0,"event":"?"}"#)
            .unwrap_err()
            .to_string();
        let known: BTreeSet<String> = unknown.split('`').skip(3).step_by(2).map(str::to_owned).collect();
        assert!(known.len() > 10, "{unknown}");
        assert_eq!(documented, known);
    }
}
