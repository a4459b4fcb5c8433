//! One command as the engine sees it: its events, in order, however slowly they are read.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tvix_node_protocol::control::{Event, EventKind, SessionMode};

use super::limits::SESSION_EVENTS;

/// A command.
pub struct Session {
    /// When it began.
    pub opened: Instant,
    /// What it does.
    pub mode: SessionMode,
    /// Whether folders of failed builds are to be kept.
    pub keep_failed: bool,
    /// Ends what is being built again for it.
    pub checks: CancellationToken,
    sender: mpsc::Sender<Event>,
    /// Until somebody reads the events.
    pub receiver: Option<mpsc::Receiver<Event>>,
    backlog: VecDeque<Event>,
    left_out: u64,
    /// Binary caches that it was told cannot be used.
    complained: BTreeSet<String>,
    /// Derivations it told of.
    pub derivations: u64,
    /// Whether it was told that it is over.
    pub ended: bool,
}

impl Session {
    /// One that begins now.
    pub fn new(mode: SessionMode, keep_failed: bool) -> Self {
        let (sender, receiver) = mpsc::channel(SESSION_EVENTS);
        Self {
            opened: Instant::now(),
            mode,
            keep_failed,
            checks: CancellationToken::new(),
            sender,
            receiver: Some(receiver),
            backlog: VecDeque::new(),
            left_out: 0,
            complained: BTreeSet::new(),
            derivations: 0,
            ended: false,
        }
    }

    /// Tells that a binary cache cannot be used, once for each: every path would have the same to say.
    pub fn complain(&mut self, cache: &str, text: &str) {
        if self.complained.insert(cache.to_owned()) {
            self.send(EventKind::Message {
                level: "warning".to_owned(),
                text: text.to_owned(),
            });
        }
    }

    /// Whether events wait for a reader that is slow.
    pub fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Sends an event. A line of log is left out where the reader is far behind.
    pub fn send(&mut self, kind: EventKind) {
        let at = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        let log = matches!(kind, EventKind::Log { .. });
        let event = Event { at, kind };
        self.flush();
        if self.backlog.is_empty() {
            match self.sender.try_send(event) {
                // Without a receiver the command is gone; closing the session is under way.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                Err(mpsc::error::TrySendError::Full(event)) if !log => self.backlog.push_back(event),
                Err(mpsc::error::TrySendError::Full(_)) => self.left_out += 1,
            }
        } else if log {
            self.left_out += 1;
        } else {
            self.backlog.push_back(event);
        }
    }

    /// Sends what waits. Only what the coordinator says waits, so it is bounded by the derivations
    /// of the session.
    pub fn flush(&mut self) {
        while let Some(event) = self.backlog.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(event)) = self.sender.try_send(event) {
                self.backlog.push_front(event);
                return;
            }
        }
        if self.left_out > 0 {
            let text = format!(
                "{} log lines were left out here; tvix-node log shows them all",
                self.left_out
            );
            let at = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
            let kind = EventKind::Message {
                level: "info".to_owned(),
                text,
            };
            if self.sender.try_send(Event { at, kind }).is_ok() {
                self.left_out = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> EventKind {
        EventKind::Log {
            derivation: tvix_node_protocol::StorePath::from_parts([1; 20], "loud.drv").unwrap(),
            line: number.to_string(),
        }
    }

    fn said(text: &str) -> EventKind {
        EventKind::Message {
            level: "info".to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn who_reads_slowly_misses_lines_of_logs_and_nothing_else() {
        let mut session = Session::new(SessionMode::Build, false);
        let mut receiver = session.receiver.take().unwrap();
        for number in 0..SESSION_EVENTS + 5 {
            session.send(line(number));
        }
        assert!(!session.is_behind(), "no line waits beyond the bound");
        session.send(said("first"));
        session.send(line(0));
        session.send(said("second"));
        assert!(session.is_behind());
        let mut read = |count: usize| -> Vec<EventKind> {
            let next = std::iter::from_fn(|| receiver.try_recv().ok());
            next.take(count).map(|event| event.kind).collect()
        };
        let lines = read(SESSION_EVENTS);
        assert_eq!(lines.len(), SESSION_EVENTS);
        assert_eq!(lines.last(), Some(&line(SESSION_EVENTS - 1)));
        assert!(read(1).is_empty());
        session.flush();
        assert_eq!(
            read(10),
            [
                said("first"),
                said("second"),
                said("6 log lines were left out here; tvix-node log shows them all"),
            ]
        );
        assert!(!session.is_behind());
        // From here on it hears all again.
        session.send(line(7));
        assert_eq!(read(10), [line(7)]);
    }
}
