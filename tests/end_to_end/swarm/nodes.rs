//! Several machines of one team.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use serde_json::Value;

use crate::harness::{Finished, Machine, Running, examples, tool};

/// How long anything is waited for: far more than it takes on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so. `what`: for the message where it never is.
#[track_caller]
pub fn until<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = is_so() {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A node that is up, in a home of its own.
pub struct Node {
    pub machine: Machine,
    pub name: &'static str,
    process: Option<Child>,
}

impl Node {
    /// One that takes part in nothing yet.
    pub fn up(name: &'static str, slots: u32) -> Self {
        let mut node = Self {
            machine: Machine::new(),
            name,
            process: None,
        };
        node.start(&["--listen", "127.0.0.1:0", "--slots", &slots.to_string()]);
        node
    }

    /// One whose process sees the network of a namespace alone, and listens on a port of all its addresses.
    pub fn up_in(namespace: &str, name: &'static str, port: u16, slots: u32) -> Self {
        let mut node = Self {
            machine: Machine::new(),
            name,
            process: None,
        };
        let (listen, slots) = (format!("0.0.0.0:{port}"), slots.to_string());
        let up = node
            .machine
            .command(&["up", "--listen", &listen, "--slots", &slots]);
        let mut inside = Command::new("ip");
        inside
            .args(["netns", "exec", namespace])
            .arg(up.get_program())
            .args(up.get_args())
            .current_dir(node.machine.folder())
            .stdin(Stdio::null());
        for (variable, value) in up.get_envs() {
            match value {
                Some(value) => inside.env(variable, value),
                None => inside.env_remove(variable),
            };
        }
        node.spawn(inside);
        node
    }

    /// Starts its process, and waits until it says that it is ready.
    pub fn start(&mut self, arguments: &[&str]) {
        let command = self.machine.command(&[&["up"], arguments].concat());
        self.spawn(command);
    }

    fn spawn(&mut self, mut command: Command) {
        assert!(self.process.is_none(), "{} is up", self.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.machine.folder().join("node.log"))
            .expect("a log");
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("standard output can be read");
        assert!(
            line.contains("is up"),
            "{} did not start:\n{}",
            self.name,
            self.log()
        );
        self.process = Some(process);
    }

    /// What its process logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.machine.folder().join("node.log")).expect("the log")
    }

    pub fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("the node is up");
        kill_process(Pid::from_child(process), signal).expect("the node runs");
    }

    /// Breaks the connections that its process has with others, as a router that forgets them does. False where this machine
    /// does not let one process do that to another.
    pub fn break_connections(&self) -> bool {
        let process = Pid::from_child(self.process.as_ref().expect("the node is up"));
        let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else {
            return false;
        };
        let open = fs::read_dir(format!("/proc/{}/fd", process.as_raw_pid())).expect("its descriptors");
        let mut broken = 0;
        for entry in open.flatten() {
            let number = entry.file_name().into_string().expect("a number");
            let number = number.parse().expect("a number");
            let descriptor = match pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()) {
                Ok(descriptor) => descriptor,
                Err(Errno::PERM | Errno::NOSYS) => return false,
                // It is closed by now.
                Err(_) => continue,
            };
            let stream = TcpStream::from(descriptor);
            if stream.peer_addr().is_ok() && stream.shutdown(Shutdown::Both).is_ok() {
                broken += 1;
            }
        }
        assert!(broken > 0, "{} has no connections", self.name);
        true
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process
            .take()
            .expect("the node is up")
            .wait()
            .expect("it ends");
    }

    /// Ends it as its user would.
    pub fn down(&mut self) {
        self.machine.run(&["down"]).ok();
        let mut process = self.process.take().expect("the node is up");
        assert!(process.wait().expect("it ends").success(), "{}", self.log());
    }

    /// What a command prints with `--json`.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let finished = self.machine.run(&[arguments, &["--json"]].concat());
        serde_json::from_str(finished.ok()).expect("JSON")
    }

    pub fn key(&self) -> String {
        text(&self.json(&["status"])["node"])
    }

    /// A ticket for one new member.
    pub fn ticket(&self, arguments: &[&str]) -> String {
        let invite = [&["invite", "--name", self.name], arguments].concat();
        self.machine.run(&invite).ok().to_owned()
    }

    pub fn join(&self, ticket: &str) -> Finished {
        self.machine.run(&["join", ticket, "--name", self.name])
    }

    /// What it knows of a member it is connected with.
    pub fn peer(&self, name: &str) -> Option<Value> {
        let peers = self.json(&["peers"]);
        let mut all = peers.as_array().expect("a list").iter();
        all.find(|peer| peer["name"] == name).cloned()
    }

    /// Waits until it is connected with a member, and knows what that offers.
    #[track_caller]
    pub fn meet(&self, name: &str) {
        until(&format!("{} meets {name}", self.name), || {
            self.peer(name).filter(|peer| peer["version"] != "")
        });
    }

    /// Waits until it has written down where a member can be reached, so that it finds it again.
    #[track_caller]
    pub fn notes(&self, other: &Node) {
        let members = other.json(&["members"]);
        let address = text(&members["listening"][0]);
        let teams = self.machine.home().join("teams").join(text(&members["swarm"]));
        until(&format!("{} notes where {} is", self.name, other.name), || {
            let noted = fs::read(teams.join("contacts")).ok()?;
            let found = noted
                .windows(address.len())
                .any(|part| part == address.as_bytes());
            found.then_some(())
        });
    }

    /// Bytes of store content that it has sent to a member since it was started.
    pub fn content_sent(&self, name: &str) -> u64 {
        self.traffic(name, "contentSent")
    }

    /// The same, received.
    pub fn content_received(&self, name: &str) -> u64 {
        self.traffic(name, "contentReceived")
    }

    fn traffic(&self, name: &str, counter: &str) -> u64 {
        let status = self.json(&["status"]);
        let peers = status["peers"].as_array().expect("a list").clone();
        let peer = peers.into_iter().find(|peer| peer["name"] == name);
        let peer = peer.unwrap_or_else(|| panic!("{} is not connected with {name}", self.name));
        peer["traffic"][counter].as_u64().expect("a number")
    }

    /// Puts the offline example into its folder.
    pub fn offline_example(&self) {
        let copy = |from: &Path, to: &str| {
            fs::copy(from, self.machine.folder().join(to)).expect("a copy");
        };
        copy(&examples().join("offline/default.nix"), "default.nix");
        copy(tool(), "tool");
    }

    /// `build -A attribute`, with what else is given, telling events.
    pub fn build(&self, attribute: &str, more: &[&str]) -> Build {
        finished(self.machine.run(&build_arguments(attribute, more)))
    }

    /// The same, under way.
    pub fn start_build(&self, attribute: &str, more: &[&str]) -> Running {
        self.machine.start(&build_arguments(attribute, more))
    }

    /// Whether a path is in its store.
    pub fn has(&self, path: &str) -> bool {
        self.machine.run(&["store", "info", path]).status == 0
    }

    /// Folders that builds have at the moment. What a slot keeps for the next build is empty.
    pub fn scratch(&self) -> Vec<String> {
        let folder = self.machine.home().join("scratch");
        let mut left = Vec::new();
        for name in names_in(&folder) {
            if name.starts_with("slot-") {
                for kept in ["root/build", "root/tmp", "root/nix/store", "spare"] {
                    let inside = names_in(&folder.join(&name).join(kept));
                    left.extend(inside.into_iter().map(|inside| format!("{name}/{kept}/{inside}")));
                }
            } else {
                left.push(name);
            }
        }
        left
    }
}

/// Names in a folder; none where it is just being removed.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}

fn build_arguments<'a>(attribute: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["build", "-A", attribute, "--log-format", "internal-json"];
    if !more.contains(&"--to") {
        arguments.push("--no-out-link");
    }
    arguments.extend(more);
    arguments
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.name, self.log());
        }
        if let Some(mut process) = self.process.take() {
            // It may have ended already.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// A build that is over.
pub struct Build {
    pub finished: Finished,
    pub events: Vec<Value>,
}

/// Reads the events that a command told.
pub fn finished(finished: Finished) -> Build {
    let events = finished.stderr.lines().map(|line| {
        serde_json::from_str(line).unwrap_or_else(|_| panic!("no event: {line}\n{}", finished.stderr))
    });
    Build {
        events: events.collect(),
        finished,
    }
}

impl Build {
    /// The paths it printed, sorted.
    #[track_caller]
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.finished.ok().lines().map(str::to_owned).collect();
        paths.sort();
        paths
    }

    /// The only path it printed.
    #[track_caller]
    pub fn path(&self) -> String {
        let paths = self.paths();
        assert_eq!(paths.len(), 1, "{paths:?}");
        paths.into_iter().next().expect("one")
    }

    /// The events of one kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["event"] == kind)
    }

    /// A number in the last event.
    #[track_caller]
    pub fn count(&self, what: &str) -> u64 {
        let ended = self.of_kind("ended").last();
        let ended = ended.unwrap_or_else(|| panic!("it did not end:\n{}", self.finished.stderr));
        ended[what].as_u64().expect("a number")
    }

    /// What was said to the user, one message a line.
    pub fn messages(&self) -> String {
        let mut said = String::new();
        for event in &self.events {
            for member in ["text", "error", "reason"] {
                if let Some(words) = event[member].as_str() {
                    said += &format!("{}: {words}\n", text(&event["event"]));
                }
            }
        }
        said
    }
}

/// The string that a member of an event is.
#[track_caller]
pub fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}

/// The first node founds a team, the others join it with every role but that to invite; all know each
/// other.
pub fn team<const COUNT: usize>(members: [(&'static str, u32); COUNT]) -> [Node; COUNT] {
    let nodes = members.map(|(name, slots)| Node::up(name, slots));
    for node in &nodes[1..] {
        node.join(&nodes[0].ticket(&[])).ok();
    }
    all_meet(&nodes);
    nodes
}

/// Waits until all know each other.
#[track_caller]
pub fn all_meet(nodes: &[Node]) {
    for node in nodes {
        for other in nodes.iter().filter(|other| other.name != node.name) {
            node.meet(other.name);
        }
    }
}
