//! Commands: how they begin, and what they hear.

use tokio::sync::mpsc;
use tvix_node_coordinator::{BuildId, Event, SessionId, SessionOptions};
use tvix_node_gateway::control::ApiError;
use tvix_node_protocol::build::DesiredStore;
use tvix_node_protocol::control::{
    Destination, Event as SessionEvent, EventKind, FailureKind, OpenSession, PresenceTiming,
};
use tvix_node_protocol::roster::Role;

use super::Engine;
use crate::daemon::session::Session;
use crate::team::membership::TeamFailure;
use crate::upstream::{Complaint, Substituters};

impl Engine {
    pub(super) fn open(&mut self, request: &OpenSession) -> Result<u64, ApiError> {
        if self.stopping.is_some() {
            return Err(ApiError::new(
                FailureKind::Unavailable,
                "this node is going down; run the command again",
            ));
        }
        let to = self.destination(request)?;
        let number = self.next_session;
        self.next_session += 1;
        let substituters = Substituters {
            caches: request.substituters.clone(),
            keys: request.trusted_public_keys.clone(),
        };
        let begun = self.depot.upstreams.begin_session(number, &substituters);
        begun.map_err(|error| ApiError::new(FailureKind::Invalid, error.to_string()))?;
        self.sessions
            .insert(number, Session::new(request.mode, request.keep_failed));
        self.depot.begin_session(number);
        self.happened(Event::SessionOpened {
            session: SessionId(number),
            options: SessionOptions::of(request, to),
        });
        Ok(number)
    }

    /// The store that a command's `--to` means.
    fn destination(&self, request: &OpenSession) -> Result<Option<DesiredStore>, ApiError> {
        let invalid = |error: TeamFailure| ApiError::new(FailureKind::Invalid, error.to_string());
        match &request.to {
            None => Ok(None),
            Some(Destination::Folder(folder)) => Ok(Some(DesiredStore::Folder(folder.clone()))),
            Some(Destination::Member(member)) => {
                let (team, node) = self.team.member(member).map_err(invalid)?;
                if self.team.own_keys().contains(&node) {
                    // It is where outputs go anyway.
                    return Ok(None);
                }
                if !team.swarm.members().may(node, Role::Store) {
                    let message = format!(
                        "{member} cannot be the desired store: it does not have the role 'store' in the team \
                         ('tvix-node members' shows who has)"
                    );
                    return Err(ApiError::new(FailureKind::Invalid, message));
                }
                Ok(Some(DesiredStore::Node(node)))
            }
        }
    }

    pub(super) fn watch(&mut self, session: u64) -> Result<mpsc::Receiver<SessionEvent>, ApiError> {
        let state = self
            .sessions
            .get_mut(&session)
            .ok_or_else(|| no_session(session))?;
        state.receiver.take().ok_or_else(|| {
            ApiError::new(
                FailureKind::Conflict,
                format!("the events of session {session} are read by somebody already"),
            )
        })
    }

    pub(super) fn warn(&mut self, text: &str) {
        tracing::warn!("{text}");
        for state in self.sessions.values_mut().filter(|state| !state.ended) {
            state.send(EventKind::Message {
                level: "warning".to_owned(),
                text: text.to_owned(),
            });
        }
    }

    /// Tells of caches that cannot be used whoever works with them.
    pub(super) fn complain(&mut self, complaints: &[Complaint]) {
        for (number, state) in self.sessions.iter_mut().filter(|(_, state)| !state.ended) {
            for complaint in complaints.iter().filter(|complaint| complaint.concerns(*number)) {
                state.complain(&complaint.cache, &complaint.text);
            }
        }
    }

    pub(super) fn tell(&mut self, session: u64, kind: EventKind) {
        if let EventKind::Placed {
            derivation,
            node,
            reason,
            ..
        } = &kind
            // Who joins a build that runs already is told as well.
            && !self.running.values().any(|running| running.derivation == *derivation)
        {
            self.placements
                .insert(derivation.clone(), (node.clone(), reason.clone()));
        }
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        if matches!(kind, EventKind::Ended { .. }) {
            state.ended = true;
        }
        state.send(kind);
    }

    /// Ends a session whose events the coordinator will not follow.
    pub(super) fn end_refused(&mut self, session: u64) {
        if self.sessions.get(&session).is_some_and(|state| !state.ended) {
            let outcome = tvix_node_protocol::control::Outcome::BuildFailed;
            self.tell(
                session,
                EventKind::Ended {
                    outcome,
                    built: 0,
                    fetched: 0,
                    present: 0,
                    failed: 1,
                    presence: PresenceTiming::default(),
                },
            );
        }
    }

    pub(super) fn line(&mut self, build: BuildId, line: String) {
        let Some(running) = self.running.get_mut(&build) else {
            return;
        };
        running.last_line.clone_from(&line);
        let derivation = running.derivation.clone();
        for watcher in self.coordinator.watchers(build) {
            if let Some(state) = self.sessions.get_mut(&watcher.0) {
                state.send(EventKind::Log {
                    derivation: derivation.clone(),
                    line: line.clone(),
                });
            }
        }
    }

    pub(super) fn flush(&mut self) {
        for state in self.sessions.values_mut() {
            state.flush();
        }
    }
}

/// Why nothing can be said to a session.
pub(super) fn no_session(session: u64) -> ApiError {
    ApiError::new(
        FailureKind::NotFound,
        format!("there is no session {session}; it has ended"),
    )
}
