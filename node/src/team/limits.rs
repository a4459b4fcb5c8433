//! Bounds of what this node does for and with its team, each with its reason.

use std::time::Duration;

use tvix_node_swarm::limits::SHARES;

/// Teams that a node takes part in at once. Each has a roster, nonces and its part of the connections and of others' presence;
/// what else takes much memory is bounded for all of them together. The owner founds and joins them, and nobody else.
pub const TEAMS: usize = 16;

/// Derivations of which it is remembered that their inputs were not to be had in one of several teams: some 100 bytes
/// each. Own builds fill it. Forgetting one costs a question.
pub const STRAYED: usize = 16_384;

/// Bytes of what peers said of paths, remembered between asking for presence and fetching: half a
/// kilobyte each, and its record where it has one, which names every input of its build.
pub const SHOWN_BYTES: usize = 64 << 20;

/// Providers that are asked what they know of one path. A fetch uses as many at once.
pub const PROVIDERS: usize = 4;

/// Paths of one closure that are on their way at once: enough to hide round trips, few enough that what
/// is needed first does not wait for what is needed last. Of small ones
/// [`SHARES`] times as many.
pub const ARRIVING: usize = 24;

/// Threads that write small trees for the store, one tree after the other. There are others for large ones.
pub const PREPARING: usize = 2;

/// How many each of them writes until it looks for more: so few that the others have some of what comes together.
pub const PREPARED_AT_ONCE: usize = 8;

/// How long a path that has come keeps its turn while it waits for what it refers to. Two closures that come at once and say of
/// two paths that each refers to the other would else wait for each other for ever.
pub const REFERENCES_PATIENCE: Duration = Duration::from_secs(60);

/// Paths in one closure that is fetched or sent. As many as a request may name.
pub const CLOSURE: usize = tvix_node_protocol::limits::CLOSURE_PATHS;

/// Steps of one fetch that wait for the engine.
pub const STEPS: usize = 256;

/// Builds for others that are taken at once, waiting for a slot or their inputs included. Each holds a
/// stream, a plan and a place in a queue.
pub const SERVED_BUILDS: usize = 512;

/// Of these, for one requester: nobody fills the queue alone.
pub const SERVED_BUILDS_PER_REQUESTER: usize = 256;

/// Seconds that a build for another may take: a browser on two cores takes most of a day.
pub const SERVED_TIME: u64 = 24 * 3600;

/// Seconds for which it may say nothing: large links and tests do so for a while.
pub const SERVED_SILENCE: u64 = 2 * 3600;

/// Bytes of its log.
pub const SERVED_LOG: u64 = 256 << 20;

/// Of the machine's memory, in hundredths, what a build for another may have where nothing else is said: its owner works on the
/// rest.
pub const SERVED_MEMORY: u64 = 50;

/// Bytes that it may use on the disk.
pub const SERVED_DISK: u64 = 64 << 30;

/// Builds begun for others that a request waits for and that come to nothing for it, because they are for their
/// requester alone or lack what that one was to give, before it has one of its own: sharing costs it no more than this,
/// whatever others ask for.
pub const TURNED_AWAY: usize = 2;

/// How long a build for another goes on whose requester's connection broke: a lost link is dialled again within some seconds, and a
/// build of hours would begin anew. Nobody may come back, so it is not long.
pub const REQUESTER_BACK: Duration = Duration::from_secs(10);

/// How often it is looked at whether that one is still a member.
pub const REQUESTER_LOOK: Duration = Duration::from_millis(500);

/// How long a build for another waits for a slot before its requester is told to look elsewhere.
pub const SLOT_PATIENCE: Duration = Duration::from_secs(10);

/// Requests whose derivations are looked at at once: each may hold [`REQUEST_DERIVATION_BYTES`].
pub const CONSIDERED: usize = 4;

/// Of those, of one requester.
pub const CONSIDERED_PER_REQUESTER: usize = 2;

/// How long the derivations of a request may take to come and be looked at: those of a whole system come in some seconds.
pub const CONSIDERED_TIME: Duration = Duration::from_secs(120);

/// Derivations of one request that are fetched to recompute its output paths. All of nixpkgs' largest
/// closures have some 20,000.
pub const REQUEST_DERIVATIONS: usize = 65_536;

/// Bytes of their texts.
pub const REQUEST_DERIVATION_BYTES: usize = 256 << 20;

/// Bytes of a request's inputs: the closure of a large desktop is some 20 GB.
pub const REQUEST_INPUT_BYTES: u64 = 64 << 30;

/// Seconds for which a build request of this node is good (for others' the swarm has a bound): long enough for a builder that is slow to take it up.
pub const REQUEST_TIME: u64 = 600;

/// Trees that were made for one member alone and may be fetched by it: 100 bytes each.
pub const GRANTS: usize = 16_384;

/// Seconds such a tree is there for.
pub const GRANT_TIME: u64 = 3600;

/// Trees that stay here for one peer because it is fetching them: as many as a node fetches at once, if all are small. What a tree
/// refers to stays with it, so who asks on and on for something large keeps it, but no more than so many.
pub const LENT_PER_PEER: usize = tvix_node_swarm::limits::FETCHES * SHARES as usize;

/// The same for all peers: four can fetch so much each.
pub const LENT: usize = 4 * LENT_PER_PEER;

/// How long a peer may take to ask for the next part of a tree: it asks for parts of others meanwhile, over a slow link; and who was
/// cut off is back within so long.
pub const LENT_TIME: Duration = Duration::from_secs(60);

/// Paths offered in one push; a larger closure is offered in parts.
pub const OFFERED: usize = 1024;

/// Pause before a change of the free slots is told to the team, so that a row of short builds is not a
/// row of messages.
pub const FACTS_PAUSE: Duration = Duration::from_millis(100);

/// How long what has arrived of a tree waits to be gone on with. Who comes back after a week has other things
/// to fetch.
pub const SPOOL_IDLE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a builder whose connection broke is asked to go on with what it was doing, before it counts as gone: a link that was
/// lost for a moment is back by then, and another builder is asked within two seconds.
pub const BUILDER_BACK: Duration = Duration::from_millis(1500);

/// After how long without a connection the coordinator hears that such a builder is gone: those who ask it again have given up by
/// then.
pub const BUILDER_GONE: Duration = Duration::from_millis(2500);

/// Pause between two tries to reach it.
pub const BUILDER_PAUSE: Duration = Duration::from_millis(100);

/// How often in the course of one build: who takes a request again and again, and closes, does not build it.
pub const BUILDER_BREAKS: u32 = 16;

/// How long a builder is waited for that could not be spoken to at all.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often the coordinator hears of a far build while it waits for this node: as often as its builder
/// gives a sign of life.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// Other paths that are looked at to find out whether the record of one is believed. The inputs of the
/// inputs of a package of nixpkgs are some hundreds.
pub const EVIDENCE: usize = 4096;

/// Bytes of the archive of a failed build's folder that is brought home. A kernel's or browser's has more,
/// and nobody wants to wait for that to learn of a failure; most have some megabytes.
pub const FAILED_FOLDER_BYTES: u64 = 2 << 30;

/// Files, links and folders in it: the sources of a large project, built.
pub const FAILED_FOLDER_ENTRIES: usize = 500_000;

/// Samples that wait for a slot or are built at once. One that finds no place is left out, and said so: they
/// must never hold up a node's own builds.
pub const SAMPLES: usize = 32;

/// Bytes of the log of a build for others that are kept for who joins it late: some ten thousand lines. All of
/// it is in the builder's store.
pub const SHARED_LOG: usize = 1 << 20;

/// How often it is looked at how far and how fast peers are: a placement is better for it, and nothing waits for
/// it.
pub const LINKS_PAUSE: Duration = Duration::from_secs(2);

/// How long who asks on which terms slots are lent waits for what follows from them: a look takes a millisecond.
pub const SETTLING: Duration = Duration::from_secs(2);

/// How often it is looked at whether the machine lets anything be lent: a person who begins to work waits no longer
/// for the machine, and a look costs a millisecond.
pub const SHARE_PAUSE: Duration = Duration::from_secs(5);

/// How long each peer has to say what it has, and what it builds, before something is placed: less than the coordinator waits
/// for all of them, so that one who is silent does not take the answers of others along.
pub const WEIGH_TIME: Duration = Duration::from_millis(200);
