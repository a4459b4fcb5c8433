//! The first process of a build, from its first instruction to the builder program.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::confinement;
use super::fault::{Fault, Step};
use super::tree::BUILD_FOLDER;
use super::{CONTROL, mounts};
use crate::channel;
use crate::nat;
use crate::proxy::PORT;
use crate::sys;
use crate::wire::{self, Order, Report, Task};

/// Exit status of a first process that did not become the builder program; nobody reads it, because a
/// report came before.
const NOT_EXECUTED: i32 = 127;

/// Sets up everything and becomes the builder program.
pub(super) fn become_builder(order: &Order, control: &UnixStream, alive: &OwnedFd) -> ! {
    let report = match prepare(order, control, alive).and_then(|()| run(order, control)) {
        Ok(Some(error)) => Report::NotExecuted {
            errno: error.raw_os_error().unwrap_or_default(),
        },
        // A probe ends here, and what is no program.
        Ok(None) => sys::exit_now(0),
        Err(fault) => fault.into_report(),
    };
    // Where the node cannot be told, it sees the helper end without a word.
    let _helper_reports = wire::write(control, &report);
    sys::exit_now(NOT_EXECUTED)
}

fn prepare(order: &Order, control: &UnixStream, alive: &OwnedFd) -> Result<(), Fault> {
    confinement::die_with_helper()?;
    let mut started = [0];
    File::from(alive.try_clone().step(|| "copying a pipe")?)
        .read_exact(&mut started)
        .step(|| "waiting for ids to be mapped")?;
    rustix::process::setsid().step(|| "starting a session")?;
    confinement::give_way(order.niceness)?;
    confinement::prefer_as_victim();
    confinement::hide_control_groups()?;
    sys::bring_up_loopback().step(|| "switching the loopback interface on")?;
    if order.proxy {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).step(|| "opening the proxy's listener")?;
        wire::write_with(control, &Report::Listening, listener.as_fd())
            .step(|| "passing the proxy's listener out")?;
    }
    if order.tunnel {
        tunnel(control, order.ipv6)?;
    }
    rustix::system::sethostname(b"localhost").step(|| "setting the host name")?;
    rustix::system::setdomainname(b"(none)").step(|| "setting the domain name")?;
    mounts::enter(order)?;
    confinement::become_build_user()?;
    confinement::leave_keys()?;
    confinement::die_with_helper()?;
    confinement::check_helper(alive).step(|| "looking after the helper")?;
    confinement::limit(order)?;
    rustix::process::chdir(BUILD_FOLDER).step(|| format!("entering {BUILD_FOLDER}"))?;
    sys::reset_signals().step(|| "resetting signals")?;
    let mut thirty_two_bit = false;
    if let Some(Task::Program(program)) = &order.task {
        thirty_two_bit = program.thirty_two_bit;
        confinement::set_personality(thirty_two_bit)?;
    }
    debug_assert_eq!(control.as_fd().as_raw_fd(), CONTROL);
    confinement::drop_privileges(thirty_two_bit)
}

/// Makes the interface of the user-mode network, and passes what is behind it out. Where that is forbidden
/// after all the build goes on without: it has the proxy.
fn tunnel(control: &UnixStream, ipv6: bool) -> Result<(), Fault> {
    let made = File::options().read(true).write(true).open(nat::DEVICE);
    let made = made.and_then(|device| {
        sys::make_tunnel(&device, nat::INSIDE, nat::MASK)?;
        Ok(device)
    });
    match made {
        Ok(device) => {
            let added = match ipv6 {
                true => sys::add_ipv6_to_tunnel(nat::INSIDE_V6, nat::PREFIX_V6),
                false => Ok(()),
            };
            let no_ipv6 = added.err().map(|error| error.to_string());
            wire::write_with(control, &Report::Tunnel { no_ipv6 }, device.as_fd())
        }
        Err(error) => {
            let reason = error.to_string();
            wire::write(control, &Report::NoTunnel { reason })
        }
    }
    .step(|| "passing the network interface out")
}

/// Executes the builder program; gives the error where that failed. Does what a builder that is no program
/// does, and gives nothing.
fn run(order: &Order, control: &UnixStream) -> Result<Option<std::io::Error>, Fault> {
    let string = |bytes: &wire::Bytes| CString::new(bytes.0.clone());
    let program = match &order.task {
        Some(Task::Program(program)) => program,
        Some(Task::UnpackChannel(wanted)) => {
            wire::write(control, &Report::Started).step(|| "reporting to the node")?;
            if let Err(error) = channel::unpack(wanted) {
                eprintln!("error: {error}");
                sys::exit_now(1);
            }
            return Ok(None);
        }
        None => {
            wire::write(control, &Report::Started).step(|| "reporting to the node")?;
            return Ok(None);
        }
    };
    let strings = |list: &[wire::Bytes]| -> Result<Vec<CString>, Fault> {
        list.iter()
            .map(string)
            .collect::<Result<_, _>>()
            .step(|| "passing arguments and environment")
    };
    let path = string(&program.path).step(|| "passing the builder's path")?;
    let arguments = strings(&program.arguments)?;
    let environment = strings(&program.environment)?;
    // Everything that the helper opened, except the socket, which closes when the program starts.
    sys::close_from(CONTROL.cast_unsigned() + 1).step(|| "closing descriptors")?;
    wire::write(control, &Report::Started).step(|| "reporting to the node")?;
    Ok(Some(sys::execute(&path, &arguments, &environment)))
}
