//! Letting go of what a build has a say in.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::sys;

/// Closes descriptors, and does not wait for what their owner has asked sockets to wait for (`SO_LINGER`): a thread that ends
/// waits for nothing, so one takes them with it.
///
/// # Errors
/// Gives them back, where there can be no such thread.
pub(crate) fn close_without_waiting(descriptors: Vec<OwnedFd>) -> Result<(), Vec<OwnedFd>> {
    let (ready, is_ready) = channel();
    let (end, ends) = channel::<()>();
    let thread = thread::Builder::new().spawn(move || {
        // A table of its own, which the kernel closes when the thread has ended as far as anybody can see.
        let apart = sys::unshare(libc::CLONE_FILES).map(|()| rustix::thread::gettid());
        if ready.send(apart.ok()).is_ok() {
            let _closed = ends.recv();
        }
    });
    let Ok(thread) = thread else {
        return Err(descriptors);
    };
    let apart = is_ready.recv().ok().flatten();
    let left = match apart {
        Some(_) => {
            drop(descriptors);
            Vec::new()
        }
        None => descriptors,
    };
    drop(end);
    if thread.join().is_err() || !left.is_empty() {
        return Err(left);
    }
    // It is joined before it is gone, and a process that is to be copied may have one thread alone.
    while let Some(gone) = apart
        && Path::new(&format!("/proc/self/task/{gone}")).exists()
    {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use rustix::net::sockopt::set_socket_linger;

    use super::*;

    /// A socket that is asked to wait an hour at its end for what its peer does not take.
    pub(crate) fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        set_socket_linger(&socket, Some(Duration::from_secs(3600))).unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 1 << 16]).is_ok() {}
        (socket, peer)
    }

    /// Does something that may never end.
    pub(crate) fn ends<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, waits) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(act()));
        waits.recv_timeout(Duration::from_secs(60)).expect("it ends")
    }

    #[test]
    fn the_end_of_a_socket_is_not_waited_for() {
        let (socket, peer) = lingering();
        ends(|| close_without_waiting(vec![socket.into()]).map_err(drop)).unwrap();
        drop(peer);
    }
}
