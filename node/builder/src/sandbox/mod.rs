//! The sandbox helper: a process of its own, with one thread, between the node and a build.
//!
//! It gets one [`Order`], makes the folder that becomes the build's `/`, copies itself into new
//! namespaces ([`inside`] goes on there and becomes the builder program), and waits. When the node's
//! end of the socket closes, it kills the build; when it dies itself, the kernel does (parent death
//! signal). The builder program is process 1 of its process namespace, as in Nix: when it ends, the
//! kernel kills every other process in there before its end is reported.
//!
//! Where the node runs as root, the helper stays root until the builder program is executed, but in a
//! user namespace to which only the build's own host uid is mapped, as in Nix: it can still read
//! root's folders while it mounts, and the build never is root, neither inside nor outside.

mod confinement;
mod fault;
mod file_systems;
mod inside;
mod landlock;
mod memory;
mod mounts;
mod namespaces;
mod system_calls;
mod tree;
mod unmapped;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::config::SANDBOX_ARGUMENT;
use crate::limits::PROCESS_LOOK;
use crate::processes;
use crate::sys::{self, Side};
use crate::wire::{self, Order, Report};
use confinement::SessionWeight;
use fault::{Fault, Step};
pub use landlock::Landlock;
use memory::MemoryWatch;
pub(crate) use tree::{BUILD_FOLDER, CERTIFICATES};

/// Uid of a build inside of its sandbox, as Nix's.
pub(crate) const INSIDE_UID: u32 = 1000;
/// Gid of a build inside of its sandbox, as Nix's.
pub(crate) const INSIDE_GID: u32 = 100;

/// Descriptor of the helper's end of the socket, after everything that it inherited is closed.
const CONTROL: i32 = 3;

/// Becomes the sandbox helper where the program was started as that, and does not return then. Must be
/// the first thing that `main` does: no thread may exist yet.
pub fn run_if_sandbox() {
    let mut arguments = std::env::args_os();
    if arguments.next_back().is_none_or(|last| last != SANDBOX_ARGUMENT) {
        return;
    }
    let code = match helper() {
        Ok(()) => 0,
        Err(fault) => {
            // The node could not be told over the socket: its log is what is left.
            eprintln!("sandbox helper: {fault}");
            1
        }
    };
    std::process::exit(code);
}

/// The helper's whole life. Faults that the node was told of are no errors here.
fn helper() -> Result<(), Fault> {
    sys::close_from(3).step(|| "closing inherited descriptors")?;
    let control = UnixStream::from(
        io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .step(|| "taking the socket to the node")?,
    );
    if control.as_raw_fd() != CONTROL {
        return Err(Fault::own(
            "taking the socket to the node",
            "standard output or error is closed",
        ));
    }
    standard_input_from_null()?;
    rustix::process::setsid().step(|| "starting a session")?;
    let order: Order =
        wire::read(&control).step(|| "reading the order (this program is started by tvix-node itself)")?;
    match supervise(&order, &control) {
        Ok(()) => Ok(()),
        Err(fault) => wire::write(&control, &fault.into_report()).step(|| "reporting to the node"),
    }
}

fn supervise(order: &Order, control: &UnixStream) -> Result<(), Fault> {
    let lock = File::create(order.scratch.as_path().join("lock"))
        .step(|| "creating the lock of the build folder")?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .step(|| "locking the build folder")?;
    let mount_points = tree::make(order)?;
    drop_groups()?;
    let children = sys::child_signals().step(|| "watching for children")?;
    // The build waits on this pipe until its ids are mapped, and learns from it that the helper died.
    let (alive, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(|| "making a pipe")?;
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let pid = match sys::clone_process(namespaces).step(|| "creating namespaces")? {
        Side::Child => {
            drop(held);
            drop(children);
            inside::become_builder(order, control, &alive);
        }
        Side::Parent(pid) => pid,
    };
    drop(alive);
    let mapped = map_ids(order, pid).and_then(|()| {
        let memory = MemoryWatch::begin(order, pid);
        release_log()?;
        File::from(held.try_clone().step(|| "copying a pipe")?)
            .write_all(b"1")
            .step(|| "starting the build")?;
        Ok(memory)
    });
    let memory = match mapped {
        Ok(memory) => memory,
        Err(fault) => {
            kill(pid);
            sys::wait(pid, true).step(|| "waiting for the build's first process")?;
            return Err(fault);
        }
    };
    let (exit, usage) = watch(order, memory, pid, &children, control)?;
    drop(held);
    tree::take_back(order, &mount_points)?;
    wire::write(control, &Report::Ended { exit, usage }).step(|| "reporting to the node")
}

/// Waits for the end of the build, and kills it when the node's end of the socket closes, or when it has more
/// processes or uses more memory than allowed.
fn watch(
    order: &Order,
    mut memory: Option<MemoryWatch<'_>>,
    pid: i32,
    children: &OwnedFd,
    control: &UnixStream,
) -> Result<(wire::Exit, wire::Usage), Fault> {
    let mut next_look = Instant::now() + PROCESS_LOOK;
    let mut weight = SessionWeight::of(pid, order.niceness);
    let mut killed = false;
    loop {
        if let Some(ended) = sys::wait(pid, false).step(|| "waiting for the build")? {
            return Ok(ended);
        }
        let mut sources = [
            PollFd::new(children, PollFlags::IN),
            PollFd::new(control, PollFlags::IN | PollFlags::RDHUP),
        ];
        let timeout = Timespec::try_from(next_look.saturating_duration_since(Instant::now()))
            .map_err(io::Error::other)
            .step(|| "waiting for the build")?;
        match poll(&mut sources, Some(&timeout).filter(|_| !killed)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).step(|| "waiting for the build"),
        }
        if !sources[1].revents().is_empty() {
            kill(pid);
            return sys::wait(pid, true)
                .step(|| "waiting for the killed build")?
                .ok_or_else(|| Fault::own("waiting for the killed build", "it is still there"));
        }
        if !sources[0].revents().is_empty() {
            // Level-triggered: take the signal, else the next poll returns at once.
            let mut signal = [0; 128];
            rustix::io::read(children, &mut signal).step(|| "reading a signal")?;
        }
        let began = Instant::now();
        if killed || began < next_look {
            continue;
        }
        weight.say_again();
        let excess = if processes::threads_below(pid, order.processes) > order.processes {
            Some(Report::TooManyProcesses)
        } else if memory.as_mut().is_some_and(|memory| memory.is_exceeded(pid)) {
            Some(Report::TooMuchMemory)
        } else {
            None
        };
        if let Some(excess) = excess {
            killed = true;
            kill(pid);
            wire::write(control, &excess).step(|| "reporting to the node")?;
        }
        // Looking takes a twentieth of a processor at most.
        next_look = Instant::now() + (began.elapsed() * 20).max(PROCESS_LOOK);
    }
}

/// Kills process 1 of the build's process namespace, and with it everything in there.
fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // Fails only where it is dead already: nobody else waits for it, so the id is not reused.
        let _dead_already = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Supplementary groups cannot be dropped by an ordinary user; inside they show as `nogroup`, as in Nix.
fn drop_groups() -> Result<(), Fault> {
    match rustix::thread::set_thread_groups(&[]) {
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error).step(|| "dropping supplementary groups"),
    }
}

/// Maps the one user and the one group of the sandbox.
fn map_ids(order: &Order, pid: i32) -> Result<(), Fault> {
    let uid = order
        .host_id
        .unwrap_or_else(|| rustix::process::geteuid().as_raw());
    let gid = order
        .host_id
        .unwrap_or_else(|| rustix::process::getegid().as_raw());
    if uid == 0 {
        return Err(Fault::own(
            "mapping user ids",
            "a build must not run as the machine's root; the node must give it another uid",
        ));
    }
    let write = |file: &str, text: String| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text).step(|| format!("writing {path}"))
    };
    write("uid_map", format!("{INSIDE_UID} {uid} 1"))?;
    write("setgroups", "deny".to_owned())?;
    write("gid_map", format!("{INSIDE_GID} {gid} 1"))
}

fn standard_input_from_null() -> Result<(), Fault> {
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .step(|| "opening /dev/null")?;
    rustix::stdio::dup2_stdin(&null).step(|| "redirecting standard input")
}

/// Lets go of the log, so that it ends when the build does.
fn release_log() -> Result<(), Fault> {
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .step(|| "opening /dev/null")?;
    rustix::stdio::dup2_stdout(&null).step(|| "redirecting standard output")?;
    rustix::stdio::dup2_stderr(&null).step(|| "redirecting standard error")
}
