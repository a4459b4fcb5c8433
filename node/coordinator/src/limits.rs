//! Bounds on what the coordinator holds and how long it waits, each with its reason.

use std::time::Duration;

/// Commands at once. Sets of sessions are kept as the bits of one word beside every path and
/// derivation; a person has a handful of terminals, a CI machine some dozens of jobs.
pub const SESSIONS: usize = 64;

/// Derivations of one session. All of nixpkgs for one system are some 250,000 with their inputs; at
/// half a kilobyte each this many still fit into 200 MB.
pub const DERIVATIONS: usize = 400_000;

/// Targets of one session. All of nixpkgs has some 100,000 attributes.
pub const TARGETS: usize = 200_000;

/// Imports that one session waits for or has waited for.
pub const IMPORTS: usize = 200_000;

/// Those bounds that no test would reach, as one coordinator has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// See [`DERIVATIONS`].
    pub derivations: usize,
    /// See [`TARGETS`].
    pub targets: usize,
    /// See [`IMPORTS`].
    pub imports: usize,
    /// See [`GIVEN_UP`].
    pub given_up: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            derivations: DERIVATIONS,
            targets: TARGETS,
            imports: IMPORTS,
            given_up: GIVEN_UP,
        }
    }
}

/// Outputs of one derivation; nixpkgs' largest have some twenty.
pub const OUTPUTS: usize = 64;

/// Direct inputs of one derivation, sources included. NixOS systems' largest have a few thousand.
pub const INPUTS: usize = 32_768;

/// Paths in one question about presence: some 200 kB on a wire.
pub const PRESENCE_BATCH: usize = 4096;

/// Questions about presence open at once: enough to hide a round trip, few enough that what is
/// demanded does not queue behind speculation at a peer.
pub const QUESTIONS: usize = 8;

/// How long an answer about presence may take before the question is put again. The caller bounds
/// its own waiting for peers well below; this guards against answers that are lost.
pub const PRESENCE_PATIENCE: Duration = Duration::from_secs(10);

/// How often a path is asked for before it counts as being nowhere.
pub const PRESENCE_TRIES: u8 = 3;

/// How long a placement waits to learn which candidate has how much of the inputs: longer than a
/// round trip across an ocean, shorter than a person notices.
pub const WEIGH_PATIENCE: Duration = Duration::from_millis(250);

/// How long what was learned counts, where it could not be placed at once: others begin builds all the time, and to ask
/// again costs a round trip.
pub const WEIGHTS_KEPT: Duration = Duration::from_millis(50);

/// After how long it is looked again at what this node was asked to build for another, and has no slot for.
pub const HELD: Duration = Duration::from_secs(1);

/// Nodes that are asked before one derivation is placed. A team's builders are fewer, mostly; of more the candidates are
/// asked first.
pub const ASKED_BEFORE_PLACING: usize = 32;

/// Builds of one other node that are joined at once: what it builds, and what waits for it to. Whoever claims more than
/// that builds nothing of it.
pub const JOINED: usize = 64;

/// Derivations that wait at once to learn who has their inputs. Bounds the questions in flight.
pub const WEIGHING: usize = 64;

/// Sources kept for one path. More add nothing: a fetch uses few at once, and when all of them fail
/// it is asked again.
pub const SOURCES: usize = 8;

/// Fetches at once. Each is a whole closure, moved in parallel by the caller.
pub const FETCHES: usize = 32;

/// Pushes at once, for the same reason.
pub const PUSHES: usize = 16;

/// How often a path is fetched in vain before it counts as being nowhere but in the own store.
pub const FETCH_TRIES: u8 = 3;

/// How often a push is tried that fails for a reason that may pass.
pub const PUSH_TRIES: u8 = 3;

/// Peers known at once.
pub const PEERS: usize = 1024;

/// Builders that may be lost over one derivation (gone, silent, or with a result that was none)
/// before no further peer is asked: it may be the derivation that kills them.
pub const BUILDERS_LOST: u8 = 3;

/// How long a peer that has refused something is left alone, unless it offers anew: so that a peer
/// that refuses everything costs a message now and then, and not one for each derivation.
pub const REFUSAL_PAUSE: Duration = Duration::from_secs(5);

/// How long a peer that could not be reached is left alone, unless it offers anew: until the caller says that it is gone, or it
/// is back.
pub const GONE_PAUSE: Duration = Duration::from_secs(3);

/// Tries of one derivation on this node that may end without being the derivation's fault.
pub const TRIES_HERE: u8 = 2;

/// Times that builders may say that they lack inputs of one derivation that this node has: a connection that broke is
/// made again by then.
pub const UNTAKEN_TRIES: u8 = 3;

/// Builds of one derivation in all, whatever ended each: a last bound for worlds in which results
/// vanish as often as they are made.
pub const TRIES: u8 = 12;

/// How long a builder goes on without being told that its build is still wanted.
pub const LEASE: Duration = Duration::from_secs(30);

/// How often a builder is told: several messages may be lost.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(5);

/// Silence of a builder after which a second one starts.
pub const HEDGE_AFTER: Duration = Duration::from_secs(2);

/// Milliseconds that a build usually takes at most that is begun here, too, when a peer takes twice as long with it: doing
/// a short one twice costs less than somebody's waiting.
pub const RACED: u64 = 10_000;

/// How long a peer has for a build in any case before it is raced: a request, inputs, a record take their time.
pub const RACE_PATIENCE: Duration = Duration::from_secs(1);

/// Silence of a builder after which it is given up. A result that comes later is still taken.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// Builds given up whose late results are still known.
pub const GIVEN_UP: usize = 4096;

/// How long demanded work waits for a slot held by speculation before the speculation is stopped. A
/// short speculative build is better let finish: it is likely to be demanded soon.
pub const PREEMPT_AFTER: Duration = Duration::from_secs(2);

/// Derivations of one line that are looked at for each placement. Only the few that some builders do
/// not get again are ever passed over.
pub const LOOKED_AT: usize = 32;

/// How long something demanded waits for a builder that could build it at all, where one might turn up. Peers that have
/// just been met or are restarting get this long to show up.
pub const NO_BUILDER_PATIENCE: Duration = Duration::from_secs(10);

/// How long a session's end waits for its cancelled builds to be over on this node, and for the
/// evaluation to report the import that failed.
pub const END_PATIENCE: Duration = Duration::from_secs(10);

/// Lines of a build's log that are passed on with its failure.
pub const LOG_TAIL: usize = 25;

/// Builds whose duration is remembered, one for each package and builder: all of nixpkgs has some 100,000 packages,
/// a team works on a few thousand of them; 100 bytes each.
pub const HISTORY: usize = 16_384;
