//! What the tests of the socket share: a node that only takes notes, up on a socket of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildKey, BuildLimits, BuildRecord, SwarmId};
use tvix_node_protocol::control::{
    AddRoot, AddSource, AddedAs, CONTROL_VERSION, Event, EventKind, FailureKind, FounderKey, InviteRequest,
    Invited, JoinRequest, Joined, LeaveRequest, MemberName, MemberView, OpenSession, Outcome, OwnerAnswer,
    OwnerQuestion, PeerView, PresenceTiming, Provenance, PutOut, RecordView, RenewRequest, SessionMode,
    SessionOpened, SourceAnswer, SourceQuery, Status, StoreAnswer, StoreQuestion, TeamView, TrafficView,
    WorkerMessage,
};
use tvix_node_protocol::envelope::{NodeSecret, seal};
use tvix_node_protocol::path_info::{NarHash, Origin, PathInfo};
use tvix_node_protocol::roster::{Founder, Roles};
use tvix_node_protocol::tree::TreeDigest;

use super::api::{ApiError, ControlApi, LogReader};
use super::body::UploadBody;
use super::client::ControlClient;
use super::outflow::Outflow;
use super::server::{Settings, serve_with};
use super::socket::{ControlSocket, SOCKET_NAME, own_user};

pub(super) const FOREVER: Duration = Duration::from_secs(3600);

/// Takes notes of every call, and answers with what the test prepared.
pub(super) struct Notes {
    calls: mpsc::UnboundedSender<String>,
    next_session: Mutex<u64>,
    events: Mutex<BTreeMap<u64, mpsc::Receiver<Event>>>,
    /// A batch is answered when this is.
    pub(super) gate: Mutex<Option<oneshot::Receiver<()>>>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

impl Notes {
    fn note(&self, call: impl Into<String>) {
        self.calls.send(call.into()).unwrap();
    }
}

pub(super) fn path(name: &str) -> StorePath {
    StorePath::from_parts([7; 20], name).unwrap()
}

pub(super) fn info(name: &str, nar_size: u64) -> PathInfo {
    PathInfo {
        path: path(name),
        tree: TreeDigest([1; 32]),
        nar_hash: NarHash([2; 32]),
        nar_size,
        references: [path("glibc")].into(),
        deriver: None,
        ca: None,
        origin: Origin::Content,
        registered: 1,
        signatures: Vec::new(),
    }
}

impl ControlApi for Notes {
    async fn status(&self) -> Result<Status, ApiError> {
        self.note("status");
        Ok(Status {
            version: CONTROL_VERSION,
            program: "0.1.0".to_owned(),
            node: NodeSecret::from_bytes(&[3; 32]).key(),
            pid: 1,
            home: "/home".to_owned(),
            uptime: 2,
            slots: 3,
            idle_exit: true,
            sessions: Vec::new(),
            builds: Vec::new(),
            paths: 4,
            teams: Vec::new(),
            resting: Vec::new(),
            peers: vec![peer()],
            caches: Vec::new(),
        })
    }

    async fn stop(&self) -> Result<(), ApiError> {
        self.note("stop");
        if let Some(stop) = self.stop.lock().unwrap().take() {
            stop.send(()).unwrap();
        }
        Ok(())
    }

    async fn open_session(&self, request: OpenSession) -> Result<SessionOpened, ApiError> {
        let mut next = self.next_session.lock().unwrap();
        *next += 1;
        self.note(format!("open {:?}", request.mode));
        Ok(SessionOpened {
            session: *next,
            store_root: "/home".to_owned(),
        })
    }

    async fn events(&self, session: u64) -> Result<mpsc::Receiver<Event>, ApiError> {
        self.note(format!("events {session}"));
        let receiver = self.events.lock().unwrap().remove(&session);
        receiver.ok_or_else(|| ApiError::new(FailureKind::NotFound, format!("there is no session {session}")))
    }

    async fn close_session(&self, session: u64) {
        self.note(format!("close {session}"));
    }

    async fn take_batch(&self, session: u64, batch: Vec<WorkerMessage>) -> Result<(), ApiError> {
        self.note(format!("batch {session} of {}", batch.len()));
        let gate = self.gate.lock().unwrap().take();
        if let Some(gate) = gate {
            gate.await.unwrap();
            self.note("batch taken");
        }
        Ok(())
    }

    async fn add_source(
        &self,
        session: u64,
        source: AddSource,
        archive: UploadBody,
    ) -> Result<PathInfo, ApiError> {
        if source.name == "refused" {
            return Err(ApiError::caused(
                FailureKind::NoSpace,
                "the source 'refused' does not fit",
                std::io::Error::other("the disk is full"),
            ));
        }
        self.note("archive begins");
        let mut reader = archive.into_reader();
        let read = tokio::task::spawn_blocking(move || std::io::copy(&mut reader, &mut std::io::sink()));
        match read.await.unwrap() {
            Ok(size) => {
                self.note(format!("source {session} {}", source.name));
                Ok(info(&source.name, size))
            }
            Err(error) => {
                self.note("torn source");
                Err(ApiError::caused(
                    FailureKind::Invalid,
                    "the archive is torn",
                    error,
                ))
            }
        }
    }

    async fn find_source(&self, session: u64, query: SourceQuery) -> Result<SourceAnswer, ApiError> {
        self.note(format!("find {session} {}", query.fingerprint));
        Ok(SourceAnswer {
            path: Some(path("source")),
        })
    }

    async fn path_infos(
        &self,
        paths: Vec<StorePath>,
        session: Option<u64>,
    ) -> Result<Vec<PathInfo>, ApiError> {
        if let Some(session) = session {
            self.note(format!("hold {session} {}", paths.len()));
        }
        Ok(paths.iter().map(|path| info(path.name(), 1)).collect())
    }

    async fn log(&self, path: StorePath) -> Result<LogReader, ApiError> {
        match path.name() {
            "panics" => panic!("on purpose"),
            "none" => Err(ApiError::new(FailureKind::NotFound, "there is no log")),
            _ => Ok(Box::new(std::io::Cursor::new(vec![b'\xff'; 1_000_000]))),
        }
    }

    async fn why(&self, path: StorePath) -> Result<Provenance, ApiError> {
        Ok(Provenance {
            info: info(path.name(), 1),
            summary: "built here".to_owned(),
            reason: None,
            node: None,
            started: None,
            finished: None,
            has_log: false,
        })
    }

    async fn add_root(&self, root: AddRoot) -> Result<(), ApiError> {
        self.note(format!("root {}", root.link));
        Ok(())
    }

    async fn records(&self, path: StorePath) -> Result<Vec<RecordView>, ApiError> {
        self.note(format!("records {}", path.name()));
        Ok(vec![record(path.name())])
    }

    async fn ask_store(&self, question: StoreQuestion) -> Result<StoreAnswer, ApiError> {
        self.note(format!("store {question:?}"));
        Ok(StoreAnswer::Paths {
            infos: vec![info("hello", 1)],
        })
    }

    async fn archive(&self, path: StorePath) -> Result<LogReader, ApiError> {
        self.note(format!("archive of {}", path.name()));
        Ok(Box::new(std::io::Cursor::new(b"archive".to_vec())))
    }

    async fn export(&self, paths: Vec<StorePath>) -> Result<LogReader, ApiError> {
        self.note(format!("export of {}", paths.len()));
        let (mut outflow, reader) = Outflow::new();
        tokio::task::spawn_blocking(move || {
            let written = std::io::Write::write_all(&mut outflow, b"export");
            outflow.end(written.and_then(|()| Err(std::io::Error::other("the disk is on fire"))));
        });
        Ok(reader)
    }

    async fn import(&self, export: UploadBody) -> Result<Vec<PathInfo>, ApiError> {
        let mut reader = export.into_reader();
        let read = tokio::task::spawn_blocking(move || std::io::copy(&mut reader, &mut std::io::sink()));
        match read.await.unwrap() {
            Ok(size) => Ok(vec![info("imported", size)]),
            Err(error) => Err(ApiError::caused(
                FailureKind::Invalid,
                "the export is torn",
                error,
            )),
        }
    }

    async fn invite(&self, request: InviteRequest) -> Result<Invited, ApiError> {
        self.note(format!(
            "invite {} valid {} lasts {} as {:?} to {:?} new {}",
            request.roles, request.valid, request.lasts, request.name, request.team, request.new_team
        ));
        Ok(Invited {
            ticket: Some("ticket".to_owned()),
            founders: Vec::new(),
            threshold: 1,
            swarm: SWARM,
            expires: request.valid,
            roles: request.roles,
            founded: true,
            addresses: vec!["/ip4/192.0.2.1/tcp/4001".to_owned()],
        })
    }

    async fn join(&self, request: JoinRequest) -> Result<Joined, ApiError> {
        self.note(format!("join {} as {:?}", request.ticket, request.name));
        if request.ticket == "used" {
            return Err(ApiError::new(FailureKind::Conflict, "the ticket has been used"));
        }
        Ok(Joined {
            swarm: SWARM,
            name: request.name.unwrap(),
            members: 2,
            founder: false,
            founders: 1,
            threshold: 1,
        })
    }

    async fn founder_key(&self) -> Result<FounderKey, ApiError> {
        self.note("founder key".to_owned());
        let key = NodeSecret::from_bytes(&[5; 32]).key();
        Ok(FounderKey { key })
    }

    async fn team(&self, named: Option<String>) -> Result<TeamView, ApiError> {
        self.note(format!("team {named:?}"));
        Ok(team())
    }

    async fn peers(&self, named: Option<String>) -> Result<Vec<PeerView>, ApiError> {
        self.note(format!("peers {named:?}"));
        Ok(vec![peer()])
    }

    async fn revoke(&self, member: MemberName) -> Result<PutOut, ApiError> {
        self.note(format!("revoke {} of {:?}", member.member, member.team));
        Ok(put_out(&member.member))
    }

    async fn renew(&self, request: RenewRequest) -> Result<(), ApiError> {
        let roles = request.roles.map(|roles| roles.to_string());
        self.note(format!(
            "renew {} {roles:?} {} of {:?}",
            request.member, request.lasts, request.team
        ));
        Ok(())
    }

    async fn leave(&self, request: LeaveRequest) -> Result<(), ApiError> {
        self.note(format!("leave {:?} {}", request.team, request.force));
        Ok(())
    }

    async fn ask_owner(&self, question: OwnerQuestion) -> Result<OwnerAnswer, ApiError> {
        self.note(format!("owner {question:?}"));
        Ok(OwnerAnswer::Trust {
            rules: Vec::new(),
            names: Vec::new(),
            me: NodeSecret::from_bytes(&[3; 32]).key(),
            slots: 2,
        })
    }
}

pub(super) const SWARM: SwarmId = SwarmId([8; 32]);

pub(super) fn team() -> TeamView {
    let key = NodeSecret::from_bytes(&[3; 32]).key();
    TeamView {
        swarm: SWARM,
        team: "ann's team".to_owned(),
        me: key,
        name: "ann".to_owned(),
        listening: Vec::new(),
        founders: 1,
        threshold: 1,
        members: vec![MemberView {
            key,
            name: "ann".to_owned(),
            roles: Roles::all(),
            issued_by: None,
            founder: true,
            not_after: None,
            me: true,
            connected: false,
            to_renew: false,
            against: Vec::new(),
        }],
        waiting: Vec::new(),
        refused: Vec::new(),
    }
}

/// One of two founders that it takes has said so.
pub(super) fn put_out(name: &str) -> PutOut {
    let founder = |seed: u8, name: &str| Founder {
        key: NodeSecret::from_bytes(&[seed; 32]).key(),
        name: name.to_owned(),
    };
    PutOut {
        key: founder(6, name).key,
        name: name.to_owned(),
        out: false,
        by: vec![founder(3, "ann")],
        needed: 2,
    }
}

pub(super) fn peer() -> PeerView {
    PeerView {
        team: SWARM,
        key: NodeSecret::from_bytes(&[4; 32]).key(),
        name: "bob".to_owned(),
        addresses: vec!["/ip4/192.0.2.2/udp/4001/quic-v1".to_owned()],
        version: "0.1.0".to_owned(),
        systems: vec!["x86_64-linux".to_owned()],
        features: Vec::new(),
        slots: 4,
        free: 3,
        load: 50,
        round_trip_ms: Some(1.25),
        speed: Some(12_500_000),
        withheld: None,
        fixed_outputs: false,
        reaches_this_node: None,
        traffic: TrafficView {
            sent: 4,
            received: 3,
            content_sent: 2,
            content_received: 1,
        },
    }
}

pub(super) fn record(name: &str) -> RecordView {
    let secret = NodeSecret::from_bytes(&[4; 32]);
    let record = BuildRecord {
        build_key: BuildKey([1; 32]),
        request: None,
        derivation: path(&format!("{name}.drv")),
        inputs: Vec::new(),
        outputs: BTreeMap::new(),
        builder: secret.key(),
        started: 1,
        finished: 2,
        sandbox: "namespaces".to_owned(),
    };
    RecordView::of(&seal(&record, &secret).unwrap(), Some("bob".to_owned()), true).unwrap()
}

/// A node that is up.
pub(super) struct Up {
    pub(super) home: tempfile::TempDir,
    pub(super) notes: Arc<Notes>,
    pub(super) calls: mpsc::UnboundedReceiver<String>,
    /// How many connections there are.
    pub(super) connected: tokio::sync::watch::Receiver<usize>,
    pub(super) server: JoinHandle<()>,
}

impl Up {
    pub(super) fn new(settings: Settings) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (calls, received) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let notes = Arc::new(Notes {
            calls,
            next_session: Mutex::new(0),
            events: Mutex::default(),
            gate: Mutex::default(),
            stop: Mutex::new(Some(stop)),
        });
        let socket = ControlSocket::bind(home.path()).unwrap();
        let api = Arc::clone(&notes);
        let commands = tokio::sync::watch::Sender::new(0);
        let connected = commands.subscribe();
        let server = tokio::spawn(async move {
            let shutdown = async move { stopped.await.unwrap() };
            serve_with(socket, api, commands, shutdown, settings).await;
        });
        Self {
            home,
            notes,
            calls: received,
            connected,
            server,
        }
    }

    pub(super) fn patient() -> Self {
        Self::new(Settings {
            owner: own_user(),
            unwatched_session: FOREVER,
            shutdown: FOREVER,
            connections: 16,
        })
    }

    pub(super) async fn client(&mut self) -> ControlClient {
        let client = ControlClient::connect(self.home.path()).await.unwrap();
        self.called("status").await;
        client
    }

    /// The next call must be this one.
    pub(super) async fn called(&mut self, call: &str) {
        assert_eq!(self.calls.recv().await.as_deref(), Some(call));
    }

    pub(super) async fn raw(&self) -> UnixStream {
        UnixStream::connect(self.home.path().join(SOCKET_NAME))
            .await
            .unwrap()
    }

    /// Sends bytes and reads all that comes back.
    pub(super) async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.raw().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Opens a session whose events the test sends.
    pub(super) async fn session(&mut self, client: &ControlClient) -> (u64, mpsc::Sender<Event>) {
        let opened = client.open_session(&open(CONTROL_VERSION)).await.unwrap();
        self.called("open Build").await;
        let (sender, receiver) = mpsc::channel(8);
        self.notes.events.lock().unwrap().insert(opened.session, receiver);
        (opened.session, sender)
    }
}

pub(super) fn open(version: u32) -> OpenSession {
    OpenSession {
        version,
        mode: SessionMode::Build,
        keep_going: false,
        keep_failed: false,
        private: false,
        jobs: None,
        cores: 0,
        limits: BuildLimits::NONE,
        to: None,
        substituters: Vec::new(),
        trusted_public_keys: Vec::new(),
    }
}

pub(super) fn message(at: u64) -> Event {
    Event {
        at,
        kind: EventKind::Message {
            level: "info".to_owned(),
            text: "two\nlines".to_owned(),
        },
    }
}

pub(super) fn ended() -> Event {
    Event {
        at: 9,
        kind: EventKind::Ended {
            outcome: Outcome::Success,
            built: 1,
            fetched: 0,
            present: 0,
            failed: 0,
            presence: PresenceTiming::default(),
        },
    }
}

pub(super) fn source(name: &str) -> AddSource {
    AddSource {
        name: name.to_owned(),
        method: AddedAs::Nar,
        fingerprint: None,
        expected: None,
        references: BTreeSet::new(),
    }
}
