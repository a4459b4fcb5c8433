//! What is in a namespace of a build, seen from within: a copy of this process enters it, opens there what tells, and hands
//! that out. What a process of the build would show may be less, such as the mounts below a root that it chose itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys::{self, Side};
use crate::wire;

/// The mounts of a namespace.
pub(super) struct View {
    /// As in `mountinfo`.
    pub(super) list: File,
    /// Where their places begin.
    pub(super) root: OwnedFd,
}

impl View {
    pub(super) fn within(namespace: &File) -> io::Result<Self> {
        let opened = from_within(namespace, LinkNameSpaceType::Mount, |into| {
            let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            // What lies at `/proc` in there is the build's.
            let itself = openat(CWD, "/proc/self", folder, Mode::empty())?;
            into()?;
            let list = openat(
                itself,
                "mountinfo",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            Ok([list, openat(CWD, "/", folder, Mode::empty())?])
        });
        let [list, root] = opened?;
        Ok(Self {
            list: list.into(),
            root,
        })
    }

    /// The same as a process shows it, where nobody may enter.
    pub(super) fn of_process(process: i32) -> io::Result<Self> {
        Ok(Self {
            list: File::open(format!("/proc/{process}/mountinfo"))?,
            root: File::open(format!("/proc/{process}/root"))?.into(),
        })
    }
}

/// The list of the shared memory of an IPC namespace. It shows that of whoever opened it.
pub(super) fn shared_memory(namespace: &File) -> io::Result<File> {
    let opened = from_within(namespace, LinkNameSpaceType::InterProcessCommunication, |into| {
        into()?;
        Ok([File::open("/proc/sysvipc/shm")?.into()])
    });
    let [list] = opened?;
    Ok(list.into())
}

/// Lets a copy of this process open things. It is in the namespace once it has called what it is given.
fn from_within<const N: usize>(
    namespace: &File,
    kind: LinkNameSpaceType,
    open: impl FnOnce(&dyn Fn() -> io::Result<()>) -> io::Result<[OwnedFd; N]>,
) -> io::Result<[OwnedFd; N]> {
    let (ours, theirs) = UnixStream::pair()?;
    let copy = match sys::clone_process(0)? {
        Side::Child => {
            let sent = open(&|| enter(namespace, kind)).and_then(|opened| {
                opened
                    .iter()
                    .try_for_each(|one| wire::write_with(&theirs, &true, one.as_fd()))
            });
            sys::exit_now(i32::from(sent.is_err()));
        }
        Side::Parent(copy) => copy,
    };
    drop(theirs);
    let (mut message, mut with) = (Vec::new(), Vec::new());
    let received = loop {
        match wire::receive(&ours, &mut message, 64, &mut with) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    sys::wait(copy, true)?;
    received?;
    with.try_into().map_err(|_| io::ErrorKind::UnexpectedEof.into())
}

/// An ordinary user has the right to once he is in the user namespace that it belongs to, which is his.
fn enter(namespace: &File, kind: LinkNameSpaceType) -> io::Result<()> {
    let into = |namespace, kind| move_into_link_name_space(namespace, Some(kind)).map_err(io::Error::from);
    if into(namespace.as_fd(), kind).is_ok() {
        return Ok(());
    }
    let owner = sys::owner_of_namespace(namespace)?;
    into(owner.as_fd(), LinkNameSpaceType::User)?;
    into(namespace.as_fd(), kind)
}
