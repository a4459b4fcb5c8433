//! A member that lies as it likes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{
    BuildKind, BuildLimits, BuildOptions, BuildRecord, BuildRequest, BuiltOutput, Input, RecordInput,
};
use tvix_node_protocol::envelope::{NodeKey, NodeSecret, seal};
use tvix_node_protocol::messages::{Facts, Pushed, Refusal, Shown};
use tvix_node_protocol::nix::derivation::{Derivation, read_derivation};
use tvix_node_protocol::nix::store_path::build_text_path;
use tvix_node_protocol::path_info::PathInfo;
use tvix_node_protocol::ticket::Ticket;
use tvix_node_protocol::tree::{BlobDigest, Tree, TreeDigest};
use tvix_node_store::{ContentName, Naming, Store};
use tvix_node_swarm::{BuildEvent, Clock, Config, Shelf, ShelfError, SwarmHandle, team};

use crate::harness::Machine;

/// What Mallory shows: what her store has, and over it what she claims.
pub struct Lies {
    store: Store,
    claims: Mutex<BTreeMap<StorePath, Shown>>,
}

impl Lies {
    fn claims(&self) -> std::sync::MutexGuard<'_, BTreeMap<StorePath, Shown>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf for Lies {
    fn advertised(&self, _: Option<&StorePath>, _: usize) -> Result<Vec<StorePath>, ShelfError> {
        Ok(Vec::new())
    }

    fn path_info(&self, _: NodeKey, path: &StorePath) -> Result<Option<Shown>, ShelfError> {
        if let Some(claim) = self.claims().get(path) {
            return Ok(Some(claim.clone()));
        }
        let info = self.store.query(path).map_err(ShelfError::new)?;
        Ok(info.map(|info| Shown { info, record: None }))
    }

    fn may_serve(&self, _: NodeKey, _: TreeDigest) -> Result<bool, ShelfError> {
        Ok(true)
    }

    fn tree(&self, digest: TreeDigest) -> Result<Option<Tree>, ShelfError> {
        self.store.tree(&digest).map_err(ShelfError::new)
    }

    fn has_blobs(&self, blobs: &[BlobDigest]) -> Result<Vec<bool>, ShelfError> {
        self.store.has_blobs(blobs).map_err(ShelfError::new)
    }

    fn blob(&self, digest: BlobDigest) -> Result<Option<File>, ShelfError> {
        self.store.open_blob(&digest).map_err(ShelfError::new)
    }
}

pub struct Mallory {
    pub swarm: SwarmHandle,
    pub lies: Arc<Lies>,
    /// Where her honest derivations come from.
    pub machine: Machine,
    pub events: tvix_node_swarm::events::SwarmEvents,
    signer: NodeSecret,
}

impl Mallory {
    /// Joins the team of a ticket. `expression`: what she evaluates first, as `default.nix` of
    /// [`Machine::expression`]; gives the derivations of its attributes.
    pub async fn join(ticket: &str, expression: &str, attributes: &[&str]) -> (Self, Vec<StorePath>) {
        Self::join_offering(ticket, expression, attributes, Facts::default()).await
    }

    /// The same, offering to build.
    pub async fn join_offering(
        ticket: &str,
        expression: &str,
        attributes: &[&str],
        facts: Facts,
    ) -> (Self, Vec<StorePath>) {
        let machine = Machine::new();
        machine.expression(expression);
        let derivations = attributes.iter().map(|attribute| {
            let printed = machine.run(&["instantiate", "-A", attribute]);
            store_path(printed.ok())
        });
        let derivations = derivations.collect();
        machine.run(&["down"]).ok();
        let store = Store::open(&machine.home()).unwrap();
        let lies = Arc::new(Lies {
            store,
            claims: Mutex::default(),
        });
        let secret = team::new_secret().unwrap();
        let ticket = Ticket::from_text(ticket).unwrap();
        let folder = machine.folder().join("mallory");
        let joined = team::join(&folder, &secret, &ticket, "mallory", &Clock::system()).await;
        let config = Config {
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            facts,
            ..Config::new(machine.folder().join("spool"))
        };
        let signer = NodeSecret::from_bytes(&secret.to_bytes());
        let (swarm, events) = tvix_node_swarm::start(config, joined.unwrap(), secret, lies.clone())
            .await
            .unwrap();
        swarm.connect(ticket.inviter).await.unwrap();
        let mallory = Self {
            swarm,
            lies,
            machine,
            events,
            signer,
        };
        (mallory, derivations)
    }

    pub fn derivation(&self, path: &StorePath) -> Derivation {
        let text = std::fs::read(self.lies.store.physical(path)).unwrap();
        read_derivation(path, &text).unwrap()
    }

    /// The only output of a derivation.
    pub fn output(&self, derivation: &StorePath) -> StorePath {
        let derivation = self.derivation(derivation);
        derivation.resolved_outputs().unwrap()["out"]
            .path
            .clone()
            .unwrap()
    }

    /// What her store knows of a path.
    pub fn info(&self, path: &StorePath) -> PathInfo {
        self.lies.store.query(path).unwrap().unwrap()
    }

    /// Claims that a path is one file with this text. `ca`: the content address she gives with it.
    pub fn claim(&self, path: &StorePath, text: &str, ca: Option<String>) -> PathInfo {
        let file = self.machine.write("false", text);
        let lease = self.lies.store.lease();
        let name = Naming::Content(ContentName::source("false"));
        let made = self.lies.store.add_source(&file, name, &lease).unwrap();
        let info = PathInfo {
            path: path.clone(),
            ca,
            ..made
        };
        self.show(info.clone());
        info
    }

    pub fn show(&self, info: PathInfo) {
        let shown = Shown { info, record: None };
        self.lies.claims().insert(shown.info.path.clone(), shown);
    }

    /// Adds a derivation of any text, under the path that the text has.
    pub fn add_derivation(&self, name: &str, text: &[u8], references: &[StorePath]) -> StorePath {
        let path = build_text_path(name, text, references.iter()).unwrap();
        let file = self.machine.folder().join("text");
        std::fs::write(&file, text).unwrap();
        let lease = self.lies.store.lease();
        let content = Naming::Content(ContentName::source("text"));
        let made = self.lies.store.add_source(&file, content, &lease).unwrap();
        self.show(PathInfo {
            path: path.clone(),
            references: references.iter().cloned().collect(),
            ..made
        });
        path
    }

    pub fn request(&self, builder: NodeKey, derivation: &StorePath, mut inputs: Vec<Input>) -> BuildRequest {
        inputs.sort_by(|a, b| a.path.cmp(&b.path));
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&team::new_secret().unwrap().to_bytes()[..16]);
        let now = Clock::system().now();
        BuildRequest {
            swarm: self.swarm.swarm(),
            requester: self.swarm.key(),
            builder,
            derivation: derivation.clone(),
            inputs,
            outputs: vec!["out".to_owned()],
            kind: BuildKind::Regular,
            desired_store: None,
            options: BuildOptions::default(),
            limits: BuildLimits::NONE,
            urgency: 0,
            fresh: false,
            keep_failed: false,
            nonce,
            issued_at: now,
            not_after: now + 600,
        }
    }

    /// The last event of a build.
    pub async fn build(&self, request: BuildRequest) -> BuildEvent {
        let mut call = self.swarm.request_build(request).await.unwrap();
        loop {
            match call.next().await.unwrap() {
                BuildEvent::Accepted | BuildEvent::Heartbeat | BuildEvent::Log(_) => {}
                last => return last,
            }
        }
    }

    /// Takes the next request, and answers it with this as the only output: she signs what was never built.
    pub async fn lie_about_the_next(&mut self, out: &PathInfo) -> BuildRequest {
        let incoming = self.events.builds.recv().await.unwrap();
        let request = incoming.request.clone();
        let inputs = request.inputs.iter().map(|input| RecordInput {
            path: input.path.clone(),
            tree: input.tree,
        });
        let output = BuiltOutput {
            path: out.path.clone(),
            tree: out.tree,
            nar_hash: out.nar_hash,
            nar_size: out.nar_size,
            references: Vec::new(),
        };
        let now = Clock::system().now();
        let record = BuildRecord {
            build_key: request.build_key().unwrap(),
            request: Some(incoming.hash),
            derivation: request.derivation.clone(),
            inputs: inputs.collect(),
            outputs: BTreeMap::from([("out".to_owned(), output)]),
            builder: self.signer.key(),
            started: now,
            finished: now,
            sandbox: "none".to_owned(),
        };
        let running = incoming.accept().await.unwrap();
        let record = seal(&record, &self.signer).unwrap();
        running.finish(record, Pushed::NotAsked).await.unwrap();
        request
    }

    pub async fn refused(&self, request: BuildRequest) -> Refusal {
        match self.build(request).await {
            BuildEvent::Refused(refusal) => refusal,
            other => panic!("it was not refused: {other:?}"),
        }
    }
}

pub fn input(info: &PathInfo) -> Input {
    Input {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.iter().cloned().collect(),
    }
}

pub fn store_path(printed: &str) -> StorePath {
    StorePath::from_absolute_path(printed.trim().as_bytes()).unwrap()
}

/// A node that is up, in a home of its own.
pub struct UpNode {
    pub machine: Machine,
    pub key: NodeKey,
    child: std::process::Child,
}

impl UpNode {
    pub fn start(slots: u32) -> Self {
        use std::io::BufRead as _;
        let machine = Machine::new();
        let slots = slots.to_string();
        let mut child = machine
            .command(&["up", "--listen", "127.0.0.1:0", "--slots", &slots])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("is up"), "{line}");
        let status = machine.run(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(status.ok()).unwrap();
        let key = status["node"].as_str().unwrap().parse().unwrap();
        Self { machine, key, child }
    }

    pub fn ticket(&self, roles: &[&str]) -> String {
        let mut arguments = vec!["invite"];
        for role in roles {
            arguments.extend(["--role", role]);
        }
        let finished = self.machine.run(&arguments);
        finished.ok().to_owned()
    }

    pub fn join(&self, ticket: &str, name: &str) {
        self.machine.run(&["join", ticket, "--name", name]).ok();
    }

    pub fn physical(&self, path: &StorePath) -> PathBuf {
        self.machine.physical(&path.to_string())
    }
}

impl Drop for UpNode {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
