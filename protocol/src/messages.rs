//! What nodes of a swarm say to each other, door by door.
//!
//! A *door* is one protocol: a stream is opened for it, a question is sent, answers come. Each message
//! is one frame: its length as four bytes, least significant first, then deterministic CBOR of at most
//! [`Message::LIMIT`] bytes, so a size is refused before a byte of it is read. File contents follow in
//! frames of raw bytes. Only `join` is open to who is not a member.
//!
//! | door | question | answers |
//! |---|---|---|
//! | `join` | [`JoinRequest`] | [`JoinAnswer`] |
//! | `hello` | [`Hello`] | [`Hello`] |
//! | `reachability` | [`ReachabilityQuestion`] | [`ReachabilityAnswer`], after the dials |
//! | `roster` | [`RosterQuestion`], then [`RosterStatements`] | [`RosterAnswer`], then [`RosterDone`] |
//! | `presence` | [`PresenceQuestion`], after a put [`PresenceCells`] | [`PresenceAnswer`] |
//! | `paths` | [`PathsQuestion`] | one [`PathAnswer`] for each path, in order |
//! | `tree` | [`TreeQuestion`] | [`ServeAnswer`], then the encodings of all directories, each as a raw frame, breadth first, each once; an empty frame ends it |
//! | `trees` | [`TreesQuestion`] | [`ServeAnswer`], then for each tree, in order, a raw frame: the byte [`TREE_FOLLOWS`] and the tree as [`packed`](crate::packed), or the byte [`TREE_APART`]; or the byte [`TREES_END`], where [`limits::TREES_BYTES`] have been read: ask again from there |
//! | `blobs` | [`BlobsQuestion`] | [`ServeAnswer`], then each blob as a raw frame, in order |
//! | `blob` | [`BlobQuestion`] | [`ServeAnswer`], then the iroh-blobs protocol on the same stream, its request as a raw frame of at most [`limits::BLOB_REQUEST_BYTES`] |
//! | `texts` | [`TextsQuestion`] | [`ServeAnswer`], then for each path, in order, a raw frame: the byte [`TEXT_FOLLOWS`] and the file's bytes, or the byte [`TEXT_NOT_HERE`]; or the byte [`TEXTS_END`], where no more fits into [`limits::TEXTS_BYTES`]: ask again from there |
//! | `build` | an [`Envelope`] with a build request, later perhaps [`BuildControl`] | [`BuildFrame`], until one that is final |
//! | `push` | [`PushOffer`] | [`PushFrame`], until one that is final |

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::build::{BuildTerms, SwarmId};
use crate::envelope::{Envelope, NodeKey};
use crate::limits;
use crate::nix::store_path::{StorePath, basename};
use crate::path_info::{NarHash, PathInfo};
use crate::presence::Epoch;
use crate::roster::Genesis;
use crate::tree::{BlobDigest, TreeDigest};

/// A message and how large it may be.
pub trait Message: Serialize + DeserializeOwned {
    /// Bytes of its encoding.
    const LIMIT: usize;
}

macro_rules! message {
    ($name:ty, $limit:expr) => {
        impl Message for $name {
            const LIMIT: usize = $limit;
        }
    };
}

message!(Envelope, limits::ENVELOPE_BYTES);

/// What a stranger asks for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum JoinRequest {
    /// Make me a member: here is the ticket.
    Redeem {
        /// The team the ticket is for.
        swarm: SwarmId,
        /// The ticket's secret.
        #[serde(with = "crate::bytes")]
        secret: [u8; 16],
        /// What the new member wants to be called.
        name: String,
    },
    /// I am a member already, you have not heard of it yet: here are the statements.
    Introduce {
        /// The team.
        swarm: SwarmId,
        /// The chain of statements from the member up to a founder.
        statements: Vec<Envelope>,
    },
}
message!(JoinRequest, limits::INTRODUCTION_BYTES);

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Redeem { swarm, name, .. } => write!(formatter, "Redeem({swarm}, {name:?})"),
            Self::Introduce { swarm, statements } => {
                write!(formatter, "Introduce({swarm}, {} statements)", statements.len())
            }
        }
    }
}

/// What a stranger is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum JoinAnswer {
    /// You are a member.
    Welcome(Welcome),
    /// You are known now; connect anew.
    Known,
    /// You are not let in.
    Refused {
        /// Why, for the program.
        reason: JoinRefusal,
        /// Why, for a person.
        message: String,
    },
}
message!(JoinAnswer, limits::ROSTER_BYTES);

/// Everything a new member needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// How the team began. Its hash must be the swarm the ticket names.
    pub genesis: Genesis,
    /// The roster, the new member's own statement included.
    pub statements: Vec<Envelope>,
    /// Where other members were seen.
    pub contacts: Vec<Contact>,
}

/// Where a member was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// The member.
    pub key: NodeKey,
    /// Multiaddresses.
    pub addresses: Vec<String>,
}

/// Why a stranger is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinRefusal {
    /// This node did not make the ticket, or has forgotten it.
    UnknownTicket,
    /// The ticket's time is over.
    Expired,
    /// Somebody else has used it.
    Used,
    /// The ticket is for another team.
    OtherSwarm,
    /// The name cannot be one, or is taken.
    Name,
    /// The statements do not make the sender a member.
    NotAMember,
    /// The inviter may not bring in anyone any more.
    MayNotInvite,
    /// Too many at once; or it failed here. Try again.
    Busy,
}

/// What members tell each other first, and again when something changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The team.
    pub swarm: SwarmId,
    /// The presence secret in use.
    pub epoch: Epoch,
    /// Hash of all roster statements known.
    #[serde(with = "crate::bytes")]
    pub roster: [u8; 32],
    /// The sender's clock, in seconds since 1970.
    pub now: u64,
    /// What the sender offers.
    pub facts: Facts,
}
message!(Hello, limits::HELLO_BYTES);

/// Dial me, with a new connection from a new port each, at the address that you see me at and at these ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReachabilityQuestion {
    /// At most [`limits::REACHABILITY_PORTS`].
    pub ports: Vec<ListenPort>,
}
message!(ReachabilityQuestion, 128);

/// A port that a node listens at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListenPort {
    /// Of TCP.
    Tcp(u16),
    /// Of UDP, for QUIC.
    Quic(u16),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ReachabilityAnswer {
    /// It was tried.
    Dialled {
        /// The IP address that the asker is seen at.
        seen: String,
        /// Those of the ports at which it answered, and was the one it should be.
        reached: Vec<ListenPort>,
    },
    /// The asker is seen through another member only.
    Unseen,
    /// Too often, or too many at once.
    Busy,
}
message!(ReachabilityAnswer, 256);

/// What a node offers at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Facts {
    /// Version of the program.
    pub version: String,
    /// Systems it builds for, such as `x86_64-linux`.
    pub systems: Vec<String>,
    /// Features such as `kvm` and `big-parallel`.
    pub features: Vec<String>,
    /// Builds it runs at once for others.
    pub slots: u32,
    /// How many of them are free.
    pub free: u32,
    /// Load of the machine: hundredths of one busy core.
    pub load: u32,
    /// Cores.
    pub cores: u32,
    /// Why nothing is built for others at the moment; none: something is, where a slot is free.
    pub withheld: Option<String>,
    /// Whether fixed outputs are built for others. Left out where not, so that nodes that do not know of it
    /// understand all but those that offer it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fixed_outputs: bool,
    /// Of two facts of one node the one with the higher serial is the later.
    pub serial: u64,
}

/// Which statements the asker has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterQuestion {
    /// Their ids, 32 bytes each, one after the other.
    #[serde(with = "crate::bytes::vec")]
    pub known: Vec<u8>,
}
message!(RosterQuestion, limits::ROSTER_STATEMENTS * 32 + 64);

/// What the asker lacks, and what it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterAnswer {
    /// Statements the asker does not have.
    pub statements: Vec<Envelope>,
    /// Ids of those the answerer does not have, 32 bytes each.
    #[serde(with = "crate::bytes::vec")]
    pub wanted: Vec<u8>,
}
message!(RosterAnswer, limits::ROSTER_BYTES);

/// Statements that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterStatements {
    /// The statements.
    pub statements: Vec<Envelope>,
}
message!(RosterStatements, limits::ROSTER_BYTES);

/// The statements have been merged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterDone {
    /// Hash of all roster statements the answerer knows now.
    #[serde(with = "crate::bytes")]
    pub roster: [u8; 32],
}
message!(RosterDone, 128);

/// Something about presence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PresenceQuestion {
    /// Keep these cells for me, or keep them longer.
    Put {
        /// Signed [`PresenceHeader`](crate::presence::PresenceHeader)s.
        headers: Vec<Envelope>,
    },
    /// Forget what I said.
    Withdraw {
        /// A signed [`PresenceWithdrawal`](crate::presence::PresenceWithdrawal).
        statement: Envelope,
    },
    /// Who has told you that it has these?
    Query {
        /// The secret the keys are made with.
        epoch: Epoch,
        /// Keys, packed.
        #[serde(with = "crate::bytes::vec")]
        keys: Vec<u8>,
    },
    /// Which of these do you have yourself?
    Have {
        /// The secret the keys are made with.
        epoch: Epoch,
        /// Keys, packed.
        #[serde(with = "crate::bytes::vec")]
        keys: Vec<u8>,
    },
    /// I am about to have these derivations built: where are they built already, as far as you know?
    Underway {
        /// The secret the keys are made with.
        epoch: Epoch,
        /// Keys of `.drv` paths, packed; at most [`limits::UNDERWAY_KEYS`].
        #[serde(with = "crate::bytes::vec")]
        keys: Vec<u8>,
        /// Since which turn of its logical clock the asker has been about to: of two who are, the earlier one decides
        /// first.
        turn: u64,
        /// On which terms: a build on others is none of these.
        terms: BuildTerms,
    },
}
message!(PresenceQuestion, limits::PRESENCE_BYTES);

/// The keys of cells that were wanted, in the order they were wanted in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresenceCells {
    /// All keys of all these cells, packed; each cell's header says how many are its own.
    #[serde(with = "crate::bytes::vec")]
    pub keys: Vec<u8>,
}
message!(PresenceCells, limits::PRESENCE_BYTES);

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PresenceAnswer {
    /// To a put: the keys of these are needed (by their number), those are refused.
    Wanted {
        /// Numbers of the headers whose keys are not here.
        cells: Vec<u32>,
        /// Numbers of the headers that are refused, and why.
        refused: Vec<(u32, PresenceRefusal)>,
    },
    /// Done: so many cells are kept now for the sender.
    Kept {
        /// How many.
        cells: u32,
        /// How many of those sent now were refused.
        refused: u32,
    },
    /// To a query.
    Claims {
        /// Cells that have keys asked for. Not more than fit; ask again for what is missing.
        claims: Vec<Claim>,
    },
    /// To a question what one has.
    Held {
        /// A bit for each key asked for, the first is the lowest of the first byte.
        #[serde(with = "crate::bytes::vec")]
        bits: Vec<u8>,
    },
    /// To a question what is under way.
    Underway {
        /// For each key asked for, who builds it: the answerer, or a node that it has asked to.
        at: Vec<Option<NodeKey>>,
    },
    /// The whole question is refused.
    Refused {
        /// Why.
        reason: PresenceRefusal,
    },
}
message!(PresenceAnswer, limits::PRESENCE_BYTES);

/// A holder's signed word, as it was left here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// A signed [`PresenceHeader`](crate::presence::PresenceHeader).
    pub header: Envelope,
    /// Its keys, packed.
    #[serde(with = "crate::bytes::vec")]
    pub keys: Vec<u8>,
}

/// Why presence is not kept or told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum PresenceRefusal {
    /// The signature, or what is under it, does not hold.
    #[error("it does not verify")]
    Invalid,
    /// A version that who refuses it does not know. Never said to a program that does not know this word: that has
    /// signed nothing newer.
    #[error(
        "it is of version {got}, and version {known} is understood there: the older of the two nodes needs an update"
    )]
    Version {
        /// What came.
        got: u16,
        /// What is understood.
        known: u16,
    },
    /// The holder is not a member, or speaks for another.
    #[error("the holder is not a member, or another speaks for it")]
    NotTheHolder,
    /// Another team.
    #[error("it is for another team")]
    OtherSwarm,
    /// Made with another secret: one of the two has not heard of a revocation.
    #[error("it is made with another secret: one of the two has not heard of a revocation yet")]
    OtherEpoch,
    /// Expired, from the future, or valid for too long.
    #[error("it is expired, from the future, or valid for too long: is a clock wrong?")]
    Time,
    /// Something later was said or withdrawn already, up to this serial.
    #[error("a later word, of serial {newest}, is known already")]
    Stale {
        /// The highest serial seen.
        newest: u64,
    },
    /// The holder has more here than one may.
    #[error("the holder has used up its share here")]
    Quota,
    /// More keys than one question may have.
    #[error("more keys than one question may have")]
    TooMany,
    /// The asker asks more often than one may.
    #[error("too many questions; try again later")]
    Busy,
}

/// What is known of the paths with these hashes? The names are not said: whoever claimed to have a path, and does not,
/// learns none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathsQuestion {
    /// The hashes of the paths, one after the other; see [`PathsQuestion::hashes`].
    #[serde(with = "crate::bytes::vec")]
    hashes: Vec<u8>,
}
message!(PathsQuestion, limits::PATHS_BYTES);

/// The hash that a store path begins with.
pub type PathHash = [u8; 20];

impl PathsQuestion {
    /// About these paths.
    #[must_use]
    pub fn about(paths: &[StorePath]) -> Self {
        let hashes = paths.iter().flat_map(|path| *path.digest()).collect();
        Self { hashes }
    }

    /// The hashes; what is left of an unfinished one is no question.
    #[must_use]
    pub fn hashes(&self) -> &[PathHash] {
        self.hashes.as_chunks().0
    }
}

/// What is known of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathAnswer {
    /// None: it is not here, or not for the asker, which look the same.
    pub shown: Option<Shown>,
}
message!(PathAnswer, limits::SHOWN_BYTES);

/// A path info and what speaks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// What is known of the path.
    pub info: PathInfo,
    /// The record of the build that made it, as its builder signed it; none for what names itself.
    pub record: Option<Envelope>,
}

/// Send all directories of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeQuestion {
    /// The tree's digest.
    pub root: TreeDigest,
}
message!(TreeQuestion, 256);

/// Send these small trees, each as a whole. Many paths of a closure are a file of some hundred bytes, and a question for each
/// would cost more than what it brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreesQuestion {
    /// Their digests, 32 bytes each, one after the other; see [`TreesQuestion::roots`].
    #[serde(with = "crate::bytes::vec")]
    roots: Vec<u8>,
}
message!(TreesQuestion, limits::TREES_BATCH * 32 + 64);

impl TreesQuestion {
    /// For these, of which there are at most [`limits::TREES_BATCH`].
    #[must_use]
    pub fn about(roots: impl IntoIterator<Item = TreeDigest>) -> Self {
        let roots = roots.into_iter().flat_map(|root| root.0).collect();
        Self { roots }
    }

    /// The digests; none where they are too many, or one of them is not whole.
    #[must_use]
    pub fn roots(&self) -> Option<Vec<TreeDigest>> {
        let (roots, rest) = self.roots.as_chunks();
        let sound = rest.is_empty() && roots.len() <= limits::TREES_BATCH;
        sound.then(|| roots.iter().map(|root| TreeDigest(*root)).collect())
    }
}

/// Begins the frame of a tree that comes.
pub const TREE_FOLLOWS: u8 = 0;

/// The whole frame of a tree that does not come this way: it is too large, not here, not for the asker, or cannot be read. Asked
/// for by itself, it comes, or it is said why not.
pub const TREE_APART: u8 = 1;

/// The whole frame that ends an answer before its time: the rest has to be asked for anew.
pub const TREES_END: u8 = 2;

/// Send these small files of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobsQuestion {
    /// The tree they are in, which is what the asker may or may not have.
    pub root: TreeDigest,
    /// Their digests, 32 bytes each, one after the other.
    #[serde(with = "crate::bytes::vec")]
    pub blobs: Vec<u8>,
}
message!(BlobsQuestion, limits::BLOBS_BATCH * 32 + 256);

/// Send (a part of) this file of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobQuestion {
    /// The tree it is in, which is what the asker may or may not have.
    pub root: TreeDigest,
    /// Its digest.
    pub blob: BlobDigest,
}
message!(BlobQuestion, 256);

/// Send the files that these store paths are: derivations and other texts. A builder needs thousands to
/// recompute the output paths of one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextsQuestion {
    /// The paths.
    #[serde(with = "basename")]
    pub paths: Vec<StorePath>,
}
message!(TextsQuestion, limits::TEXTS_QUESTION_BYTES);

/// Begins the frame of a text that is there: its bytes follow.
pub const TEXT_FOLLOWS: u8 = 0;

/// The whole frame of a path that is not here, not for the asker, not a plain file, or larger than
/// [`limits::TEXT_BYTES`], which all look the same.
pub const TEXT_NOT_HERE: u8 = 1;

/// The whole frame that ends an answer before its time: the rest has to be asked for anew.
pub const TEXTS_END: u8 = 2;

/// Whether what was asked for is coming.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ServeAnswer {
    /// It follows.
    Coming,
    /// It is not here, or not for the asker, which look the same.
    NotHere,
    /// Too much at once; ask again, or somebody else.
    Busy,
    /// It is here but cannot be read.
    Broken,
}
message!(ServeAnswer, 64);

/// From the requester, while a build runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BuildControl {
    /// Stop; nobody wants it any more. A stream that ends without it may have broken, and its builder may go on for a while.
    Cancel,
}
message!(BuildControl, 64);

/// From the builder. All but `Accepted`, `Log` and `Heartbeat` are final.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BuildFrame {
    /// The request is taken; heartbeats follow.
    Accepted,
    /// It is not taken.
    Refused(Refusal),
    /// A piece of the build's log.
    Log {
        /// Its bytes.
        #[serde(with = "crate::bytes::vec")]
        bytes: Vec<u8>,
    },
    /// Still working on it.
    Heartbeat,
    /// It is built.
    Finished {
        /// The signed [`BuildRecord`](crate::build::BuildRecord).
        record: Envelope,
        /// Whether the outputs are in the desired store.
        pushed: Pushed,
    },
    /// It is not built.
    Failed(BuildFailure),
}
message!(BuildFrame, limits::ENVELOPE_BYTES + (1 << 20));

/// Whether the outputs reached the desired store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Pushed {
    /// No store was named.
    NotAsked,
    /// They are there; it confirmed paths and tree digests.
    Pushed,
    /// They are not; the requester fetches them.
    NotPushed {
        /// Why.
        reason: String,
    },
}

/// A request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// Why, for the program.
    pub reason: RefusalReason,
    /// Why, for a person.
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// Why a build request is not taken, in the order in which it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// Larger than a request may be.
    TooLarge,
    /// Not an envelope in deterministic form.
    Malformed,
    /// The signature does not verify; an unsigned request is one of these.
    Signature,
    /// Signed, but not as a build request.
    Domain,
    /// Of a version the builder does not know.
    Version,
    /// The request does not hold together.
    Structure,
    /// For another builder, or another team.
    Addressee,
    /// Its time is over.
    Expired,
    /// It is from the future, or valid for longer than one may be.
    FromTheFuture,
    /// The signer is not a member.
    Stranger,
    /// The signer may not ask for builds, or the builder not build.
    Role,
    /// It was sent before.
    Replayed,
    /// Too many requests.
    Busy,
    /// An output path does not follow from the derivation.
    OutputPath,
    /// An input's content does not match its own name.
    InputContent,
    /// An input cannot be had.
    InputMissing,
    /// The system, a feature or a kind of build is not offered.
    Unsupported,
    /// The builder's policy.
    Policy,
    /// The builder's machine: its disk has no room for an input, or does not take it.
    Machine,
}

/// A build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildFailure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// For a person.
    pub message: String,
    /// The end of the log.
    #[serde(with = "crate::bytes::vec")]
    pub tail: Vec<u8>,
    /// The folder in which it was built, where the request asks for it and there is one.
    pub folder: Option<FailedFolder>,
}

/// The folder of a build that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FailedFolder {
    /// The requester, and nobody else, can fetch it from the builder for a while.
    Shown {
        /// Its content.
        tree: TreeDigest,
        /// Digest of its archive.
        nar_hash: NarHash,
        /// Bytes of its archive.
        nar_size: u64,
    },
    /// It cannot be had.
    NotShown {
        /// Why.
        reason: String,
    },
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The derivation's builder failed: it would elsewhere too.
    Build,
    /// A limit of the request was reached: time, silence, log or disk.
    Limit,
    /// The fixed output is not the one the derivation names.
    Output,
    /// An input could not be fetched.
    Input,
    /// It was cancelled.
    Cancelled,
    /// The builder's machine is the reason: it may succeed elsewhere.
    Machine,
    /// The builder's owner wants the machine for something else: nothing is wrong with the builder.
    Owner,
}

/// Take these paths; fetch them from me.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushOffer {
    /// The paths, a path's references before itself.
    pub paths: Vec<Shown>,
}
message!(PushOffer, limits::PUSH_BYTES);

/// From the store. `Done` and `Refused` are final.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PushFrame {
    /// Still fetching.
    Heartbeat,
    /// This path is stored, durably, with this content.
    Stored {
        /// The path.
        #[serde(with = "basename")]
        path: StorePath,
        /// Its content.
        tree: TreeDigest,
    },
    /// All are stored.
    Done,
    /// No (more) path is taken.
    Refused {
        /// Why, for the program.
        reason: PushRefusal,
        /// Why, for a person.
        message: String,
    },
}
message!(PushFrame, 64 << 10);

/// Why a push is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushRefusal {
    /// This node is not a store for others.
    NotAStore,
    /// The policy here does not accept the path.
    Policy,
    /// The content could not be fetched, or is not what was offered.
    Content,
    /// Too much at once.
    Busy,
    /// It failed here: disk full, for example.
    Failed,
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
