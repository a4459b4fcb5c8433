//! Acts of builders that mean harm. They print what they were able to do.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};

use crate::{Done, raw};

fn tell<T>(what: &str, result: io::Result<T>) {
    match result {
        Ok(_) => println!("{what}: DONE"),
        Err(error) => println!("{what}: {}", error.kind()),
    }
}

/// Tries to create, change and remove things.
pub fn try_writing(paths: &[&str]) -> Done {
    for path in paths {
        let about = Path::new(path);
        if about.is_dir() {
            tell(path, fs::write(about.join("new"), b"x"));
            tell(
                path,
                fs::set_permissions(about, fs::Permissions::from_mode(0o777)),
            );
        } else {
            tell(path, fs::OpenOptions::new().write(true).open(about));
            tell(path, fs::remove_file(about));
        }
        tell(path, fs::rename(about, about.with_extension("moved")));
    }
    Ok(())
}

/// Tries to reach a listener of the machine.
pub fn connect(port: u16, name: &str) -> Done {
    tell("tcp", TcpStream::connect(("127.0.0.1", port)));
    tell("tcp6", TcpStream::connect(("::1", port)));
    let address = SocketAddr::from_abstract_name(name)?;
    tell("abstract", UnixStream::connect_addr(&address));
    // Sockets of a kind that no namespace keeps apart.
    tell("vsock", raw::socket(libc::AF_VSOCK));
    // What makes them, and sets attributes, without a call that a filter sees.
    tell("io_uring", raw::io_uring());
    Ok(())
}

/// Says something to a server and shows what comes back.
pub fn talk(place: &str) -> Done {
    let mut stream = match TcpStream::connect(place) {
        Ok(stream) => stream,
        Err(error) => {
            println!("talk: {}", error.kind());
            return Ok(());
        }
    };
    stream.write_all(b"hello")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer}");
    Ok(())
}

/// Says something in a datagram and shows what comes back.
pub fn exchange(place: &str) -> Done {
    let place: std::net::SocketAddr = place.parse()?;
    let any = if place.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = std::net::UdpSocket::bind(any)?;
    let said = socket.connect(place).and_then(|()| socket.send(b"hello"));
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60)))?;
    let mut answer = [0; 64];
    match said.and_then(|_| socket.recv(&mut answer)) {
        Ok(length) => println!("{}", String::from_utf8_lossy(&answer[..length])),
        Err(error) => println!("exchange: {}", error.kind()),
    }
    Ok(())
}

/// Listens where other builds might reach it.
pub fn listen(name: &str) -> Done {
    let address = SocketAddr::from_abstract_name(name)?;
    let socket = UnixListener::bind_addr(&address)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?;
    println!("port {}", port.local_addr()?.port());
    let (_, from) = socket.accept()?;
    println!("ACCEPTED {from:?}");
    Ok(())
}

/// Tries bits and attributes that an output must not have.
pub fn set_bits(folder: &str) -> Done {
    let file = format!("{folder}/file");
    fs::write(&file, b"x")?;
    for mode in [0o4755, 0o2755, 0o6755] {
        let permissions = || fs::Permissions::from_mode(mode);
        tell("chmod", fs::set_permissions(&file, permissions()));
        tell("fchmod", fs::File::open(&file)?.set_permissions(permissions()));
        tell("fchmodat2", raw::fchmodat2(&file, mode));
        match raw::chmod_32_bit(&file, mode) {
            Some(0) => println!("32-bit: DONE"),
            Some(error) => println!("32-bit: {}", io::Error::from_raw_os_error(error).kind()),
            None => println!("32-bit: not there"),
        }
    }
    // Ordinary modes still work, the 32-bit way included.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    if let Some(error @ 1..) = raw::chmod_32_bit(&file, 0o700) {
        return Err(io::Error::from_raw_os_error(error).into());
    }
    for attribute in [c"user.test", c"security.capability", c"system.posix_acl_access"] {
        match raw::set_attribute(&file, attribute) {
            Ok(()) => println!("attribute: DONE"),
            Err(error) => println!(
                "attribute: {}",
                error.raw_os_error().unwrap_or_default() == libc::ENOTSUP
            ),
        }
    }
    Ok(())
}

/// Makes programs that have such bits from the start.
pub fn make_with_bits(folder: &str) -> Done {
    for mode in [0o4755, 0o2755, 0o6755] {
        let place = format!("{folder}/{mode:o}");
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(&place)?;
        file.write_all(b"#!")?;
        let left = file.metadata()?.permissions().mode() & 0o7000;
        println!("{mode:o}: {}", if left == 0 { "lost" } else { "DONE" });
    }
    Ok(())
}

/// Makes an output of an unusual kind.
pub fn make(kind: &str, path: &str) -> Done {
    match kind {
        "fifo" => raw::make_node(path, libc::S_IFIFO | 0o644, 0)?,
        "socket" => drop(UnixListener::bind(path)?),
        "device" => tell(
            "device",
            raw::make_node(path, libc::S_IFCHR | 0o666, libc::makedev(1, 3)),
        ),
        "block" => tell(
            "block",
            raw::make_node(path, libc::S_IFBLK | 0o666, libc::makedev(7, 0)),
        ),
        "world-writable" => {
            fs::DirBuilder::new().create(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
        }
        "group-writable-file" => {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o664))?;
        }
        "link" => symlink("/etc/passwd", path)?,
        "hard-link" => {
            let input = std::env::current_exe()?;
            tell("hard-link", fs::hard_link(input, path));
            tell("hard-link", fs::hard_link("/etc/passwd", path));
            // What stays writable outside of the output must not be in it.
            fs::write("/build/own", b"x")?;
            tell("hard-link", fs::hard_link("/build/own", path));
        }
        "nothing" => {}
        other => return Err(format!("no kind {other}").into()),
    }
    Ok(())
}

/// Tries to get at what lies below the mounts, with all rights in namespaces of its own.
pub fn namespaces(input: &str) -> Done {
    match raw::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) {
        Ok(()) => println!("unshare: ok"),
        Err(error) => println!("unshare: {error}"),
    }
    tell(
        "unmount input",
        unmount(input, UnmountFlags::DETACH).map_err(Into::into),
    );
    tell(
        "unmount store",
        unmount("/nix/store", UnmountFlags::DETACH).map_err(Into::into),
    );
    tell(
        "unmount proc",
        unmount("/proc", UnmountFlags::DETACH).map_err(Into::into),
    );
    for path in ["/", input] {
        let result = mount_remount(path, MountFlags::BIND, "").map_err(Into::into);
        tell(&format!("remount {path}"), result);
    }
    tell("write", fs::write("/etc/new", b"x"));
    tell("core pattern", fs::write("/proc/sys/kernel/core_pattern", b"|/x"));
    tell("host name", fs::write("/proc/sys/kernel/hostname", b"x"));
    Ok(())
}

/// Looks for processes that are not its own, and signals one of them.
pub fn see(pid: i32) -> Done {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok())
            && pid != std::process::id().cast_signed()
        {
            println!("DONE: sees {pid}");
        }
    }
    match raw::kill(pid, libc::SIGKILL) {
        Ok(()) => println!("DONE: killed {pid}"),
        Err(error) => println!("no such process: {}", error.raw_os_error() == Some(libc::ESRCH)),
    }
    Ok(())
}

/// Looks for a key that its user has outside. `number` is what the kernel calls it.
pub fn keys(name: &str, number: i32) -> Done {
    tell("request", raw::request_key(name));
    tell("read", raw::read_key(number));
    tell("change", raw::allow_key(number));
    Ok(())
}

/// Makes an output, and leaves a process behind that goes on changing it.
pub fn change_later(path: &str, token: &str) -> Done {
    let mut output = fs::File::create(path)?;
    let (mut told, mut tell) = io::pipe()?;
    if raw::fork()? == 0 {
        raw::setsid();
        raw::ignore_signals();
        loop {
            output.write_all(token.as_bytes())?;
            // Fails once nobody listens any more.
            let _nobody_listens = tell.write(b"x");
        }
    }
    drop(tell);
    told.read_exact(&mut [0])?;
    println!("changing {token}");
    Ok(())
}

/// Leaves processes behind. Their command line contains `token`.
pub fn linger(how: &str, token: &str) -> Done {
    let (mut told, tell) = io::pipe()?;
    if raw::fork()? == 0 {
        // Away from the parent, its session and its signals.
        raw::setsid();
        if raw::fork()? != 0 {
            std::process::exit(0);
        }
        raw::ignore_signals();
        if how == "quietly" {
            raw::close_output();
        }
        let _parent = (&tell).write(b"x")?;
        loop {
            std::thread::park();
        }
    }
    drop(tell);
    let mut started = [0];
    told.read_exact(&mut started)?;
    println!("lingering {token}");
    if how == "all" {
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

/// Kills everything it can, itself included, and goes on.
pub fn kill_init(path: &str) -> Done {
    for (pid, signal) in [(1, libc::SIGKILL), (1, libc::SIGTERM), (-1, libc::SIGKILL)] {
        raw::kill(pid, signal).or_else(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(()),
            _ => Err(error),
        })?;
    }
    fs::write(path, b"alive")?;
    Ok(())
}

/// Goes on without a log.
pub fn close_log(path: &str) -> Done {
    raw::close_output();
    fs::write(path, b"quiet")?;
    Ok(())
}

/// Leaves names and modes that are hard to remove, everywhere it can write.
pub fn mess(path: &str) -> Done {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    for top in [path, "/build/mess", "/tmp/mess"] {
        let top = Path::new(top);
        fs::create_dir(top)?;
        let mut here = top.to_path_buf();
        for _ in 0..15 {
            here = here.join("n".repeat(250));
            fs::create_dir(&here)?;
        }
        for name in [&b"new\nline"[..], b"\xff\xfe", b"-rf", b"...", b" "] {
            fs::write(top.join(OsStr::from_bytes(name)), b"x")?;
        }
        symlink("/", top.join("root"))?;
        symlink("../../../..", top.join("up"))?;
        raw::make_node(&top.join("fifo").to_string_lossy(), libc::S_IFIFO | 0o644, 0)?;
        for folder in here.ancestors().take_while(|folder| *folder != top) {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o000))?;
        }
    }
    Ok(())
}

/// Traces a process of its own, which is allowed, and whatever else it finds.
pub fn trace() -> Done {
    let child = raw::fork()?;
    if child == 0 {
        loop {
            std::thread::park();
        }
    }
    tell("child", raw::trace(child));
    for pid in 2..400 {
        if pid != child && pid != std::process::id().cast_signed() && raw::trace(pid).is_ok() {
            println!("TRACED {pid}");
        }
    }
    raw::kill(child, libc::SIGKILL)?;
    Ok(())
}

/// How often it can confine itself further.
pub fn landlock_layers() -> Done {
    rustix::thread::set_no_new_privs(true)?;
    let mut layers = 0;
    while layers < 64 && raw::landlock_signals().is_ok() {
        layers += 1;
    }
    println!("layers {layers}");
    Ok(())
}
