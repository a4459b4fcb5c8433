//! Acts that let sockets linger.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size, set_socket_send_buffer_size};

use crate::flood::hold;
use crate::{Done, raw};

/// How many of them at once.
const WORKERS: usize = 8;

/// Whoever lets go of one of these sockets last waits an hour for what nobody takes, unless he ends at that moment. Processes
/// that nobody may look at have them, and end. After some looks at that, there is a flood of memory.
pub fn flood_behind_sockets() -> Done {
    raw::hide_from_debuggers()?;
    for _ in 0..WORKERS {
        if raw::fork()? == 0 {
            loop {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                // Where it is large, there would be room for everything.
                set_socket_recv_buffer_size(&listener, 4096)?;
                let child = raw::fork()?;
                if child == 0 {
                    let _sockets = sockets(&listener)?;
                    std::thread::sleep(Duration::from_millis(5));
                    raw::exit();
                }
                raw::wait(child)?;
                std::mem::forget(listener);
            }
        }
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(100));
    }
    hold("memfd", "-")
}

/// One, with many descriptors.
fn sockets(listener: &TcpListener) -> Result<Vec<OwnedFd>, Box<dyn std::error::Error>> {
    let mut socket = TcpStream::connect(listener.local_addr()?)?;
    set_socket_send_buffer_size(&socket, 4096)?;
    set_socket_linger(&socket, Some(Duration::from_secs(3600)))?;
    socket.set_nonblocking(true)?;
    while socket.write(&[0; 4096]).is_ok() {}
    let copies = (0..800).map(|_| socket.as_fd().try_clone_to_owned());
    Ok(copies.collect::<std::io::Result<_>>()?)
}
