//! Every bound of the swarm, each with its reason. Sizes of single messages are the protocol's
//! ([`tvix_node_protocol::limits`]).

use std::time::Duration;

use tvix_node_protocol::limits::{FOUNDERS, ROSTER_STATEMENTS, TREE_NODE_BYTES};

use crate::machine::Pace;

/// How far two clocks may be apart, in seconds. Machines with a time service are within one; a laptop
/// that woke up a moment ago may be off by a minute.
pub const CLOCK_SKEW: u64 = 120;

/// Seconds a request may be valid for. It bounds how long a nonce must be remembered; a requester
/// that is not answered for an hour asks anew.
pub const REQUEST_LIFETIME: u64 = 3600;

/// Nonces remembered of one requester: 10,000 builds in an hour and a bit are three a second.
pub const NONCES_PER_REQUESTER: usize = 10_000;

/// Nonces remembered in all: 64 bytes each in the file, about twice that in memory: 13 MB.
pub const NONCES: usize = 100_000;

/// Tickets remembered, used and expired ones included.
pub const TICKETS: usize = 4096;

/// Seconds an expired ticket is remembered, so that its holder is told that it expired and not that it
/// never existed.
pub const TICKET_MEMORY: u64 = 30 * 24 * 3600;

/// Keys of this node that were made for teams to begin with, and have none yet: one is made each time that somebody asks.
pub const FOUNDER_KEYS: usize = 64;

/// Statements of one roster that put keys out. Apart from the others, so that no flood of invitations
/// can keep a revocation out.
pub const REVOCATIONS: usize = 4096;

/// Of those, by members that put themselves out. The rest is the founders': who brings in keys that put themselves out
/// again keeps no founder from putting out who does it.
pub const REVOCATIONS_OF_ONESELF: usize = REVOCATIONS / 2;

/// Besides those, the statements of founders that put founders out: as many as there can be, so that there is room for each
/// of them whatever one founder does.
pub const REVOCATIONS_AMONG_FOUNDERS: usize = FOUNDERS * FOUNDERS;

/// Statements that bring keys in.
pub const MEMBERSHIPS: usize = 10_240;

/// Of those, by one who is not a founder: nobody else may fill the roster alone.
pub const MEMBERSHIPS_PER_ISSUER: usize = 1024;

/// Statements of unknown kind or version that are passed on. With all those above: the protocol's
/// `ROSTER_STATEMENTS`.
pub const UNKNOWN_STATEMENTS: usize = 1024;

/// Of those, by one signer.
pub const UNKNOWN_STATEMENTS_PER_SIGNER: usize = 64;

/// Bytes of a statement that brings a key in or puts one out: the longest has some 550. A full roster fits into the
/// protocol's `ROSTER_BYTES` with it, and so into its file: one that did not could not be read when the node starts.
pub const KNOWN_STATEMENT_BYTES: usize = 1024;

/// Statements kept for a moment whose signer nobody has vouched for yet: they may come out of order.
pub const ORPHANED_STATEMENTS: usize = 1024;

/// Steps from a founder to a member. A chain of invitations of this length is a village, not a team.
pub const CHAIN: usize = 16;

/// Seconds presence is valid for. A holder that dies unseen is asked in vain for at most so long.
pub const PRESENCE_LIFETIME: u64 = 2 * 3600;

/// Renewal: well before the end, so that one that is lost can be tried again.
pub const PRESENCE_RENEWAL: Duration = Duration::from_secs(40 * 60);

/// Members that keep a copy of a region's presence besides the holder. Three: two may be away.
pub const PRESENCE_COPIES: usize = 3;

/// Members asked about a region before giving up: some of those closest may have come lately.
pub const PRESENCE_ASKED: usize = 8;

/// Keys one holder may leave with one member: 16 bytes each, 4 MiB. A holder of a million paths has a
/// quarter of the regions here at most.
pub const PRESENCE_KEYS_PER_HOLDER: usize = 262_144;

/// Keys kept for all holders: 64 MiB.
pub const PRESENCE_KEYS: usize = 4 << 20;

/// Cells one holder may leave here. A cell costs some 700 bytes beside its keys.
pub const PRESENCE_CELLS_PER_HOLDER: usize = 16_384;

/// Cells kept for all holders: some 45 MiB.
pub const PRESENCE_CELLS: usize = 65_536;

/// Keys of a cell as a holder cuts its own: half of what a cell may have, so that it is not cut anew
/// with every path that comes in.
pub const PRESENCE_CELL_FILL: usize = 512;

/// Cells in one message: see the protocol's `PRESENCE_BYTES`.
pub const PRESENCE_CELLS_PER_PUT: usize = 64;

/// Holders remembered that withdrew everything: their serial must outlive what they said before.
pub const WITHDRAWALS: usize = 16_384;

/// Keys, paths, small trees and texts that one peer may ask about in a minute, on average; the first minute's are there at once. A
/// closure of 60,000 paths can be asked about in one go, a list of all names of a package set cannot.
pub const PRESENCE_QUESTIONS_PER_MINUTE: u32 = 131_072;

/// As how many keys a question about records counts that has fewer: every holder's word is looked through for it,
/// whatever it asks. 8,192 questions a minute are more than a build of everything asks.
pub const PRESENCE_QUERY_LEAST: usize = 16;

/// Signed statements about presence that one member may leave in a minute, on average: all its cells may come at
/// once. Checking one takes some 50 µs, so a member that sends nothing else keeps a hundredth of a core busy.
pub const PRESENCE_STATEMENTS_PER_MINUTE: u32 = PRESENCE_CELLS_PER_HOLDER as u32;

/// Addresses remembered of one member: a machine with a few networks, over two transports.
pub const ADDRESSES_PER_MEMBER: usize = 8;

/// Connections in all. A busy connection costs some 250 KiB with its buffers, a quiet one some ten.
pub const CONNECTIONS: u32 = 512;

/// Of those, made by others: what is left is ours to make.
pub const CONNECTIONS_INCOMING: u32 = 384;

/// Connections of one peer: both sides may dial at once, over two transports.
pub const CONNECTIONS_PER_PEER: u32 = 4;

/// Connections that are being made, in each direction.
pub const CONNECTIONS_PENDING: u32 = 64;

/// Of those, that come from one address: a whole team behind one router, and a quarter of all.
pub const CONNECTIONS_PENDING_EACH: usize = 16;

/// Members that let this one be reached through them, where nobody reaches it directly. Two: one may go away.
pub const RELAYS: usize = 2;

/// How long a node waits for somebody to reach it directly before it looks for a relay: members that were told where it
/// is dial within a second.
pub const RELAY_PATIENCE: Duration = Duration::from_secs(5);

/// Pause before a member that did not take a reservation is asked again.
pub const RELAY_PAUSE: Duration = Duration::from_secs(60);

/// Connected members through which another one is looked for whose addresses do not work.
pub const RELAYS_TRIED: usize = 4;

/// Members that may be reached through this node: as many as may be connected to it.
pub const RELAY_RESERVATIONS: usize = CONNECTIONS as usize;

/// Members asked whether they can dial this node: one may be beside it, another one asleep.
pub const REACHABILITY_ASKED: usize = 3;

/// How long what one says counts: routers are set up anew, and laptops carried around, every now and then.
pub const REACHABILITY_AGE: Duration = Duration::from_secs(15 * 60);

/// Pause before a member that could not say is asked again.
pub const REACHABILITY_PAUSE: Duration = Duration::from_secs(60);

/// How often it is looked whether somebody is to be asked, besides when somebody comes.
pub const REACHABILITY_CHECK: Duration = Duration::from_secs(30);

/// How long the connection of somebody who says to have dialled may take to be noticed here.
pub const REACHABILITY_WAIT: Duration = Duration::from_secs(3);

/// Members that are dialled at once because they asked for it.
pub const DIAL_BACKS: usize = 16;

/// How long such a dial may take: a handshake around the world, over a link that loses a packet.
pub const DIAL_BACK_TIME: Duration = Duration::from_secs(5);

/// How long the connection it brings is held: a round trip around the world, and a busy machine. As often as one member may
/// ask, and as many as ask at once, that is at most some dozens.
pub const DIAL_BACK_HELD: Duration = Duration::from_secs(1);

/// How often one member may ask for it in a minute, on average.
pub const DIAL_BACKS_PER_MINUTE: u32 = 6;

/// How long a reservation holds. It is renewed in time, which is when one who has it learns that nothing is passed on any
/// more; longer than two clocks may be apart, by which its end is told.
pub const RELAY_RESERVATION_TIME: Duration = Duration::from_secs(600);

/// How long after it was granted or renewed a reservation may be given up: it is not renewed for so long, whatever the
/// clocks say.
pub const RELAY_SETTLED: Duration = Duration::from_secs(60);

/// Bytes that are passed on in one go, in each direction of a connection.
pub const RELAY_PIECE: usize = 32 << 10;

/// Connections that this node passes on at once. Each costs two streams and two [`RELAY_PIECE`].
pub const RELAY_CIRCUITS: usize = 64;

/// Of those, begun by one member: no one may have them all.
pub const RELAY_CIRCUITS_PER_PEER: usize = 16;

/// How long a passed-on connection may last: longer than any build. The library's two minutes are meant for strangers.
pub const RELAY_CIRCUIT_TIME: Duration = Duration::from_secs(24 * 3600);

/// Bytes over one of them: more than any closure has. The library's 128 KiB would not carry a log.
pub const RELAY_CIRCUIT_BYTES: u64 = 256 << 30;

/// How long nothing may go over one of them in either direction. Its ends ask each other for signs of life every few
/// seconds: they have gone without a word, or only hold the place.
pub const RELAY_CIRCUIT_IDLE: Duration = Duration::from_secs(300);

/// The same once one end has said that it says no more: what was on its way to it may still come.
pub const RELAY_CIRCUIT_ENDING: Duration = Duration::from_secs(10);

/// Share of the machine's memory this process may use before it takes no more connections.
pub const MEMORY_SHARE: f64 = 0.5;

/// A connection nobody uses and nobody wants kept is closed after this time.
pub const IDLE_CONNECTION: Duration = Duration::from_secs(30);

/// How often a member is asked whether it is there.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long it may take to say so before its connection is closed, a minute after it last did: a machine that went to sleep or was
/// cut off keeps no builder busy for long; one that is overloaded, or behind a link full of content, is not taken for gone; and
/// what a builder says that wakes up after it was given up (30 s) still has its way.
pub const PING_TIME: Duration = Duration::from_secs(55);

/// How much of the time between two looks at the connections, a second apart, counts as silence: the rest of it this machine
/// was asleep, or too busy to hear anything.
pub const SILENCE_STEP: Duration = Duration::from_secs(2);

/// How long closing a connection may take, which sends what is on its way first: to who is gone it does not get away, and to
/// who is there some megabytes do.
pub const CLOSE_TIME: Duration = Duration::from_secs(5);

/// A stranger has this long to become a member.
pub const STRANGER_TIME: Duration = Duration::from_secs(30);

/// A stranger that has become a member has this long to hear so; then its connection, on which nothing but
/// `join` is offered, is closed, and it comes again as a member.
pub const ADMITTED_TIME: Duration = Duration::from_secs(3);

/// Strangers connected at once. They cannot keep members out: those have the rest.
pub const STRANGERS: usize = 32;

/// Streams served at once, for all peers.
pub const STREAMS: usize = 2048;

/// Of those, of one member, over all its connections: two hundred builds and what belongs to them.
pub const STREAMS_PER_PEER: usize = 512;

/// Streams that may be open on one connection, in each direction: as many as are served.
pub const STREAMS_PER_CONNECTION: usize = STREAMS_PER_PEER;

/// Streams of a connection over TCP that have come and that nobody has taken, before the next one is closed unread: as many as
/// who keeps to Yamux opens before it hears of one that it was taken.
pub const UNTAKEN_STREAMS: usize = 256;

/// Bytes that a stream over TCP may bring which are not read yet. Yamux begins with so many, and no program may give fewer.
pub const STREAM_WINDOW: usize = 256 << 10;

/// Bytes by which the windows of all streams of a connection over TCP may grow together. One grows while half of it comes within two
/// round trips, so that all of them end at eight times what is on its way at most: a link of 1 Gbit/s with a round trip of 47 ms
/// has 6 MB on its way, and one of twice the speed can be filled as well.
pub const WINDOW_GROWTH: usize = 96 << 20;

/// Bytes of content that a connection over TCP may bring which are not read yet: 352 MiB, of which 256 lie in streams that nobody
/// reads, if there are as many as there may be. Of those of one member, 512 are served at once, over all its connections; others say
/// what they are about within ten seconds, or are closed. So a member that does nothing else, over all four of its connections, can
/// have 1.4 GiB held, with [`FRAMES_KEPT`] 1.5 GiB, and such members together as much as [`MEMORY_SHARE`] leaves, past which nobody is
/// let in any more.
pub const CONNECTION_WINDOW: usize = 2 * STREAMS_PER_CONNECTION * STREAM_WINDOW + WINDOW_GROWTH;

/// Bytes of memory that frames of a connection over TCP may take beside the bytes in them, as long as those are not read: some 320,000
/// frames. An honest peer has less there however full its windows are: 22,528 frames of 16 KiB fill all of them. Many small
/// ones are lines of logs, of 64 bytes with what is around them, which go by themselves at most twenty times a second ([`LOG_PAUSE`]),
/// with a sign of life: 78 builds whose requester reads nothing of them have all windows full of those before it is too
/// much, and of two hundred it is after 75 s. What is read takes nothing, so who is read may send as many as it likes. Who passes
/// it loses the connection. So may the builder of so many whose requester stands still for so long: its builds are joined again when
/// that goes on.
/// Strangers have the same: whose connection it is is not known where frames are. A sixteenth in this crate's own tests: so many frames
/// take a slow machine longer than streams have to say what they are about.
pub const FRAMES_KEPT: usize = if cfg!(test) { 2 << 20 } else { 32 << 20 };

/// Frames that go out, for each stream, until Yamux has surely taken note of one that is dropped while there is always more to
/// write: it takes one thing after each frame, of one stream after the other, and each may have ten waiting. Twice that, since
/// streams come meanwhile.
pub const FRAME_TURNS: u64 = 22;

/// Bytes that are put together before they go to an encrypted connection, so that the head of a frame does not go by itself: one
/// of Yamux's frames of 16 KiB with its head.
pub const FRAME_TOGETHER: usize = 32 << 10;

/// Bytes that a place in the queue of a stream's frames takes: 32 in that of Yamux and 4 in ours, and as much again because queues
/// double. They stay as long as the stream, when the frames have been read.
pub const FRAME_SLOT: usize = 72;

/// Bytes that the memory for what is in a frame takes besides that, at most: the least piece that there is has 32.
pub const FRAME_ALLOCATION: usize = 32;

/// The same of a stream over QUIC: somewhat more than what is on its way on a link of 1 Gbit/s with a round trip of 47 ms (6 MB), so
/// that one stream can fill it.
pub const QUIC_STREAM_WINDOW: u32 = 10_000_000;

/// The same of all streams of a connection over QUIC: what one may bring, and half as much for others beside it. Four connections of
/// one member hold 60 MB.
pub const QUIC_CONNECTION_WINDOW: u32 = 15_000_000;

/// Streams a stranger may have: it has one thing to say.
pub const STREAMS_PER_STRANGER: usize = 1;

/// Streams of a connection whose protocol is not settled yet.
pub const NEGOTIATING_STREAMS: usize = 256;

/// Commands waiting for the network: each is small and taken within microseconds, and who has one more waits with it: no peer
/// gives any.
pub const COMMANDS: usize = 1024;

/// Events of the network waiting to be attended to. One too many is left out; who is gone is found out all the same, by and by.
pub const NETWORK_EVENTS: usize = 1024;

/// Bytes buffered on each side of a stream: one write to the transport carries at most this.
pub const STREAM_BUFFER: usize = 64 << 10;

/// Bytes of a stream that are read ahead: enough for what proves a group of 16 KiB, and less than the group itself, which is
/// then read to where it goes without a copy in between.
pub const READ_AHEAD: usize = 4 << 10;

/// Bytes that one record of TLS carries at most: what TLS allows.
pub const TLS_RECORD: usize = 16 << 10;

/// Bytes first read at once from the socket of an encrypted connection: more than a handshake has.
pub const TLS_READ: usize = 4 << 10;

/// Bytes of a handshake that may wait for the rest of a message: one record, and many times what honest ones have. It
/// is what a stranger can have us keep and take apart.
pub const TLS_HANDSHAKE: usize = 16 << 10;

/// Bytes read at once after the handshake, where so much is there: four records a call.
pub const TLS_INCOMING: usize = 64 << 10;

/// Bytes of records that wait to be sent on an encrypted connection: four.
pub const TLS_OUTGOING: usize = 4 * (TLS_RECORD + 64);

/// How long a peer may take for an answer, or for taking what it is sent.
pub const ANSWER_TIME: Duration = Duration::from_secs(30);

/// How long making a connection may take, all handshakes included.
pub const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long a member is dialled over TCP before it is dialled over QUIC too: a handshake across an ocean.
pub const TCP_HEAD_START: Duration = Duration::from_millis(500);

/// How long a QUIC handshake may take: a port where nobody is says nothing, and a dial over several
/// transports fails only when all have.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(3);

/// How long a walk through the routing tables may take before what is known so far has to do.
pub const WALK_TIME: Duration = Duration::from_secs(5);

/// How often the routing table is refreshed by a walk.
pub const ROUTING_REFRESH: Duration = Duration::from_secs(300);

/// Walks at once: each asks a few dozen peers.
pub const WALKS: usize = 64;

/// First pause before a member that could not be reached is dialled again; it doubles each time.
pub const REDIAL_FIRST: Duration = Duration::from_secs(2);

/// Longest pause: who was cut off is back with its team a minute later at most, and an address where nobody is costs a few packets.
pub const REDIAL_LAST: Duration = Duration::from_secs(60);

/// Members a node stays connected with. Presence is asked of all of them at once, so in a team of this
/// size every question takes one round trip.
pub const KEPT_PEERS: usize = 64;

/// Times as many may be connected with a node and stay so: half of them are there because they chose it, and who were cut off
/// for being one too many would come again at once.
pub const KEPT_FACTOR: usize = 2;

/// Roster statements in one message: some 500 bytes each, at most 4 KiB. More of them in one are not looked at.
pub const ROSTER_ROUND: usize = 2048;

/// Rounds in which two rosters are made equal: as many as a full one takes, and one in which nothing moves. A peer that has
/// something new in each is left alone until it says hello again.
pub const ROSTER_ROUNDS: usize = ROSTER_STATEMENTS.div_ceil(ROSTER_ROUND) + 1;

/// Roster statements of one member that are looked at in a minute, on average: a full roster may come at once. Checking one
/// takes some 50 µs, in which nobody else may look at the roster.
pub const ROSTER_STATEMENTS_PER_MINUTE: u32 = ROSTER_STATEMENTS as u32;

/// Bytes of directories and small files of one tree that stay in memory while it arrives: most small packages, and their
/// folders are never made.
pub const PACK_IN_MEMORY: usize = 128 << 10;

/// The same of all trees of a team together. What comes beyond that goes through the spool.
pub const PACKS_IN_MEMORY: usize = 16 << 20;

/// Notices, builds and pushes waiting for the node, each. There are fewer pushes: [`PUSHES_TAKEN`].
pub const EVENTS: usize = 1024;

/// How long one member may take to say what it has before the others' answers have to do.
pub const FIND_TIME: Duration = Duration::from_secs(3);

/// How long a connected member may take until its answer about what it has begins to come, besides [`ANSWER_ROUND_TRIPS`] round
/// trips as they were measured last, and at most [`FIND_TIME`]: a busy machine needs some ten milliseconds, and a build waits for
/// who has fallen silent and is not known to have.
pub const ANSWER_PATIENCE: Duration = Duration::from_millis(300);

/// See [`ANSWER_PATIENCE`]: the stream is opened, the question asked, and either packet may be lost once.
pub const ANSWER_ROUND_TRIPS: u32 = 4;

/// How much longer an answer may take for each key asked about: its 16 bytes need so long at 2.5 Mbit/s.
pub const ANSWER_TIME_PER_KEY: Duration = Duration::from_micros(50);

/// How long a member that was connected and is gone may take to be back when content is wanted of it.
pub const PROVIDER_BACK: Duration = Duration::from_secs(1);

/// In how many steps an answer is waited for. A machine that has too much to do looks at what has come before each of them.
pub const PATIENCE_STEPS: u32 = 10;

/// How long a member that was connected, and is not any more, is dialled while somebody waits for what it has, besides
/// [`DIAL_ROUND_TRIPS`] of its round trips, and at most [`FIND_TIME`]: it is there at once, or it is gone.
pub const DIAL_PATIENCE: Duration = Duration::from_millis(300);

/// See [`DIAL_PATIENCE`]: TCP, TLS and Yamux take five, the stream and the question two.
pub const DIAL_ROUND_TRIPS: u32 = 8;

/// How long nobody waits for a member that could not be reached, or that did not answer and has given no sign of life since:
/// a program that is started anew dials its team itself.
pub const UNREACHABLE: Duration = Duration::from_secs(60);

/// Answers of one keeper to one question: each brings up to 2 MiB.
pub const PRESENCE_ROUNDS: usize = 32;

/// Pause before a member that could not be reached is told again, unless it is seen before: a dial to nobody takes
/// seconds, and others keep the record, too.
pub const PRESENCE_RETRY: Duration = Duration::from_secs(300);

/// How often presence is looked through for what has to be renewed.
pub const PRESENCE_CHECK: Duration = Duration::from_secs(30);

/// Pause before what is new is published, so that paths that come together travel together.
pub const PRESENCE_PAUSE: Duration = Duration::from_millis(200);

/// Regions told at once, each to those who keep it.
pub const PUBLISHED_AT_ONCE: usize = 8;

/// What a node does to list and sign what it has is followed by a pause of so many times what that took: with what
/// sending costs, which is about twice as much, advertising keeps less than a tenth of a core busy.
pub const PRESENCE_REST: u32 = 30;

/// Longest such pause: a machine that was suspended or overloaded in between does not keep silent for minutes.
pub const PRESENCE_REST_LONGEST: Duration = Duration::from_secs(2);

/// How long a shutdown waits for records to be taken back: it takes milliseconds, on a machine that has far too much to
/// do some seconds.
pub const WITHDRAW_TIME: Duration = Duration::from_secs(5);

/// How long who leaves the team waits for others to hear of it.
pub const LEAVE_TIME: Duration = Duration::from_secs(5);

/// Streams that carry files out, at once; others wait. Each has a thread that reads ahead.
pub const CONTENT_STREAMS: usize = 64;

/// Of those to one peer, and streams that a node has from one provider for all that it fetches: enough for a far one,
/// and four peers are served at once.
pub const CONTENT_STREAMS_PER_PEER: usize = 16;

/// Streams that carry directories of larger trees and small texts out, at once: they do not wait behind files.
pub const WALK_STREAMS: usize = 32;

/// Of those, to one peer: who reads slowly leaves places to others, and four are served at once.
pub const WALK_STREAMS_PER_PEER: usize = WALK_STREAMS / 4;

/// Bytes of directories and texts that are read ahead for one peer, over all its streams: the largest directory alone, or
/// thousands of ordinary ones.
pub const WALK_BYTES_PER_PEER: usize = TREE_NODE_BYTES;

/// The same for all peers: those of [`WALK_STREAMS`] / [`WALK_STREAMS_PER_PEER`]. A directory takes several times as much for the
/// moment in which it is read; so large a one is rare.
pub const WALK_BYTES: usize = 4 * WALK_BYTES_PER_PEER;

/// Trees whose files are listed at once, because somebody wants some of them: each has one directory at a time in memory.
pub const LISTINGS: usize = 4;

/// Of those, for one peer: whoever asks for parts of many trees leaves some to others.
pub const LISTINGS_PER_PEER: usize = LISTINGS / 2;

/// How long one who asks for content waits for a place before it is told that this node is busy: well before it gives
/// up.
pub const PLACE_PATIENCE: Duration = Duration::from_secs(10);

/// How long one pauses who was told so, and how often in a row: some five minutes in all.
pub const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// See [`BUSY_PAUSE`].
pub const BUSY_TRIES: u32 = 30;

/// How often a connected member is greeted where that fails and it has not greeted this node either. Later it is tried again
/// from time to time.
pub const GREETINGS: u32 = 5;

/// Pause between these.
pub const GREETING_PAUSE: Duration = Duration::from_millis(500);

/// How often a stream is asked for where the connection to its peer is closed each time before it is there.
pub const OPEN_TRIES: u32 = 5;

/// How often and with which pause a door is asked for again at a member that knows this node by now and did not offer it: it says
/// in which versions it does a round trip after the connection is made.
pub const OFFERS_TRIES: u32 = 5;
/// See [`OFFERS_TRIES`].
pub const OFFERS_PAUSE: Duration = Duration::from_millis(100);

/// Versions of `join` up to which is tried which one an inviter speaks that does not speak this program's: all are
/// asked in one negotiation, each time that somebody is met in vain, to tell who needs an update.
pub const JOIN_VERSIONS_TRIED: u32 = 9;

/// First pause after such a try; each next one is twice as long: 0.3 s in all, for which somebody waits.
pub const OPEN_PAUSE: Duration = Duration::from_millis(20);

/// How often one who has nothing to do looks at least whether a provider has become slow.
pub const SHARE_LOOK: Duration = Duration::from_secs(1);

/// And how often at most.
pub const LEAST_LOOK: Duration = Duration::from_millis(10);

/// Least bytes of content a second that may be set as a cap, of all [`CONTENT_STREAMS`] together.
pub const LEAST_CAP: u64 = tvix_node_protocol::control::TrafficTerms::LEAST_RATE;

/// Bytes of content handed from the reading thread to the stream at once.
pub const CONTENT_PIECE: usize = 256 << 10;

/// Such pieces on their way. With [`CONTENT_STREAMS`]: 64 MiB.
pub const CONTENT_QUEUE: usize = 4;

/// Silence after which what a provider has to bring is asked of another one, too, where nothing has come from it yet: several
/// round trips around the world.
pub const HEDGE_SILENCE: Duration = Duration::from_secs(2);

/// Where something has come from it in the course of the same fetch, twice as long as it was ever waited for counts as silence,
/// but not less than this: a disk or a machine that is busy for a moment is no reason to send the same twice.
pub const LEAST_SILENCE: Duration = Duration::from_millis(100);

/// How often it is looked whether who brings the directories of a tree has fallen silent.
pub const WALK_LOOK: Duration = Duration::from_millis(250);

/// Bytes of a file that travels together with others. Larger ones are worth a stream of their own.
pub const PACKED_BLOB: u64 = 64 << 10;

/// Paths looked up in one go for a peer: handing each to a thread by itself would take longer than looking it
/// up. What is known of the largest of them is in memory together.
pub const PATHS_LOOKED_UP: usize = 16;

/// Bytes of all path infos one call may bring, which are in memory together: those of the largest closures have some hundred
/// MB with their records.
pub const PATHS_OF_A_CALL: usize = 1 << 30;

/// Questions for texts on their way to one peer: while one is answered the next is being read.
pub const TEXTS_QUESTIONS_AT_ONCE: usize = 4;

/// Bytes of all texts one call may bring, which are in memory together: the derivations of the largest
/// NixOS systems have some 100 MB.
pub const TEXTS_OF_A_CALL: usize = 256 << 20;

/// Files of served trees that are remembered, and trees: 32 bytes each and as much again, 64 MiB.
pub const SERVED_BLOBS: usize = 1 << 20;

/// Bytes of hashes inside served files that are in memory: those of 16 GiB of files.
pub const OUTBOARD_BYTES: usize = 64 << 20;

/// Bytes of hashes inside one served file that are in memory: those of 4 GiB. Those of a larger file lie in a file of their
/// own, so that it does not put away those of all others.
pub const OUTBOARD_BYTES_OF_A_FILE: u64 = 16 << 20;

/// Bytes of hashes inside served files that lie in files: those of 256 GiB, four of the largest files that a store takes
/// from others, and what is kept of each of their parts. A larger file is not served.
pub const OUTBOARD_BYTES_ON_DISK: usize = (1 << 30) + (16 << 20);

/// Bytes of directories and small trees on their way from one provider, as it announces them, or waiting to be written: the
/// largest directory alone.
pub const COMING_BYTES_PER_PEER: usize = TREE_NODE_BYTES;

/// The same from all providers: of as many as one tree is fetched from.
pub const COMING_BYTES: usize = PROVIDERS_AT_ONCE * COMING_BYTES_PER_PEER;

/// How long it is remembered that a file, which has not been written to since, could not be proven: each try reads all of
/// it. A disk that failed may do better later.
pub const UNPROVEN: Duration = Duration::from_secs(600);

/// Files of which that is remembered, some 200 bytes each. A disk that has more of them has other troubles.
pub const UNPROVEN_FILES: usize = 4096;

/// Shares of a place that an ordinary tree takes, and a stream with its files; a small one takes one. What is small costs
/// round trips and little else, so many have to be under way at once.
pub const SHARES: u32 = 8;

/// Bytes of all files of a small tree: a [`SHARES`]th of what is on its way to a peer on a stream. All of it is read before
/// anything is sent, so no thread waits for who reads slowly.
pub const SMALL_TREE: u64 = tvix_node_protocol::limits::SMALL_TREE;
const _: () = assert!(SMALL_TREE * SHARES as u64 == (CONTENT_PIECE * CONTENT_QUEUE) as u64);

/// Files of a small tree.
pub const SMALL_TREE_FILES: usize = tvix_node_protocol::limits::SMALL_TREE_FILES;

/// Questions for small trees to one provider at once. What is wanted meanwhile waits, and goes together with the next one: the more
/// at once, the less together.
pub const TREES_QUESTIONS: usize = 2;

/// How often, at most, those that wait for an answer's later trees are told that one has come.
pub const SIGN_PAUSE: Duration = Duration::from_millis(20);

/// How long that goes on. Who takes longer for what may be a megabyte is slow, and the rest may be had elsewhere before.
pub const TREES_PATIENCE: Duration = Duration::from_secs(10);

/// Trees fetched at once; others wait. Each has [`SHARES`].
pub const FETCHES: usize = 32;
const _: () = assert!(tvix_node_protocol::limits::TREES_BATCH == FETCHES * SHARES as usize);

/// Of those, what other members want here: inputs of their builds and what they push. They can let this node wait.
pub const FETCHES_FOR_OTHERS: usize = FETCHES / 2;

/// Of those in turn, from each of them.
pub const FETCHES_FOR_EACH: usize = FETCHES_FOR_OTHERS / 2;

/// How much of a tree has to come in how long where it is fetched for another member, and others wait for its place: 16 KiB
/// a second. A slow link is waited for as long as nobody else is; what has come of large files stays, and is not fetched again.
pub const FETCH_PACE: Pace = Pace {
    time: Duration::from_secs(60),
    bytes: 1 << 20,
};

/// Providers one tree is fetched from at once.
pub const PROVIDERS_AT_ONCE: usize = 4;

/// Streams to one provider for one tree: while one waits for an answer the other fills the link.
pub const WORKERS_PER_PROVIDER: usize = 2;

/// Round trip for which one more such stream is used: each has to be asked for, and its window opens by round trips, so
/// that two alone fill 1 Gbit/s up to some ten milliseconds.
pub const ROUND_TRIP_PER_WORKER: Duration = Duration::from_millis(8);

/// Streams to one far provider for one tree.
pub const WORKERS_PER_FAR_PROVIDER: usize = 8;

/// Bytes of small files asked for at once: what is lost in time when a provider breaks off is below a
/// tenth of a second on a slow link.
pub const PACK_BYTES: u64 = 4 << 20;

/// Chunks of 1 KiB of a large file asked for at once: 16 MiB.
pub const PIECE_CHUNKS: u64 = 16 << 10;

/// Pieces a file is cut into at least before they become larger: enough for all streams to all providers.
pub const PIECES: u64 = 16;

/// Chunks of a very large file asked for at once: 64 MiB, so that the round trips of asking hardly count.
pub const LARGE_PIECE_CHUNKS: u64 = 64 << 10;

/// Chunks that one who has nothing to do takes over of another's piece, at least: 2 MiB are worth the asking.
pub const LEAST_SHARE: u64 = 2 << 10;

/// Bytes of a file from which on it is read while it comes: reading and hashing all of it afterwards would take longer than a
/// round trip.
pub const READ_WHILE_COMING: u64 = 8 << 20;

/// Bytes that are verified before they are written together.
pub const WRITE_BATCH: usize = 1 << 20;

/// Bytes one provider must have brought in one fetch for its speed to be known by it: less is round trips.
pub const SPEED_SAMPLE: u64 = 1 << 20;

/// Entries of all directories of one tree that is fetched: some 100 bytes each are held meanwhile.
pub const TREE_ENTRIES: usize = 4 << 20;

/// Frames of one build or push waiting to be sent: a log that is written faster than it is read waits.
pub const BUILD_FRAMES: usize = 64;

/// Bytes of log in one frame.
pub const LOG_PIECE: usize = 64 << 10;

/// How long lines of a log that follow one that has just gone wait for more: nobody sees it, and a log has no more than twenty
/// pieces a second, however many lines it has, see [`FRAMES_KEPT`].
pub const LOG_PAUSE: Duration = Duration::from_millis(50);

/// Bytes of the log of one build that are taken from its builder: four times what any builder lets a build for another write.
/// They go to this node's disk.
pub const LOG_OF_A_CALL: u64 = 1 << 30;

/// How often who works for another says that it still does.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long one waits for a sign of life from who takes what is pushed.
pub const PUSH_SILENCE: Duration = Duration::from_secs(30);

/// How long one hears a builder out that gives no sign of life. The coordinator has somebody else build after two seconds and
/// counts on it no more after thirty; what it still has to say is taken when it wakes up.
pub const BUILD_SILENCE: Duration = Duration::from_secs(600);

/// How long the machine may take to say where a listener listens.
pub const LISTEN_TIME: Duration = Duration::from_secs(5);

/// Bytes of the file that holds the ports listened at: more addresses than anybody listens at.
pub const LISTEN_FILE_BYTES: usize = 64 << 10;

/// Paths listed at once of those this node has.
pub const ADVERTISED_PAGE: usize = 4096;

/// Pause before where members can be reached is written down, so that addresses that become known together are
/// written together.
pub const CONTACTS_PAUSE: Duration = Duration::from_millis(200);

/// How often what is over is thrown away.
pub const TIDY: Duration = Duration::from_secs(30);

/// Pushes that are taken at once: each has an offer of up to 32 MiB in memory, and its paths on their way.
pub const PUSHES_TAKEN: usize = 24;

/// Of those, from one member: as many as a node pushes at once. Who offers nothing, or lets this node wait for what it offers,
/// leaves some to others.
pub const PUSHES_TAKEN_PER_PEER: usize = 16;

/// How long one member may take to say which of some paths it has, its connection included: longer than a round
/// trip around the world and a look at the disk, shorter than a coordinator waits for the whole answer.
pub const HAVE_TIME: Duration = Duration::from_secs(5);

/// How long a member that asks who builds something waits at most for this node to decide that: shorter than it waits
/// for an answer before it decides itself.
pub const UNDERWAY_TIME: Duration = Duration::from_millis(150);

/// Silence after which a member that is asked about paths is taken to have no answer.
pub const PATHS_SILENCE: Duration = Duration::from_secs(5);

/// How often in a row a member is asked again that answers no questions about paths, with [`BUSY_PAUSE`] between: so long
/// a budget needs for one more question.
pub const PATHS_TRIES: u32 = 3;
