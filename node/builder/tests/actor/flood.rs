//! Acts that use up what there is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::MemfdFlags;
use rustix::mount::{MountFlags, mount};
use tvix_node_builder::limits::DESCRIPTORS_AT_ONCE;

use crate::detach::enter_namespaces;
use crate::{Done, raw};

/// Fills something until it is stopped.
pub fn fill(what: &str, path: &str) -> Done {
    match what {
        "log" => loop {
            io::stdout().write_all(&[b'x'; 4096])?;
        },
        "lines" => loop {
            println!("line");
        },
        "file" => {
            let mut file = fs::File::create(path)?;
            loop {
                file.write_all(&[b'x'; 1 << 16])?;
            }
        }
        "files" => {
            // In a folder that nobody may read.
            fs::DirBuilder::new().mode(0o700).create(path)?;
            for number in 0.. {
                fs::write(Path::new(path).join(format!("{number}")), [b'x'; 1 << 14])?;
                if number == 1000 {
                    fs::set_permissions(path, fs::Permissions::from_mode(0o000))?;
                    loop {
                        std::thread::park();
                    }
                }
            }
            Ok(())
        }
        "unreadable" => {
            // In one of the build's own folders, which may be written, but not read.
            fs::set_permissions(path, fs::Permissions::from_mode(0o300))?;
            for number in 0..1000 {
                fs::write(Path::new(path).join(format!("{number}")), [b'x'; 1 << 14])?;
            }
            forever()
        }
        "entries" => {
            // Without any content.
            fs::create_dir(path)?;
            for number in 0.. {
                fs::File::create(Path::new(path).join(number.to_string()))?;
            }
            Ok(())
        }
        "memory" => {
            let mut all = Vec::new();
            loop {
                all.push(vec![1u8; 1 << 20]);
            }
        }
        "shared" => {
            // Between processes, so that it is nobody's own.
            for _ in 0..200 {
                raw::shared_memory(1 << 20)?.fill(1);
            }
            loop {
                std::thread::park();
            }
        }
        "children" => {
            // Each of them with little.
            for _ in 0..20 {
                if raw::fork()? == 0 {
                    let little = vec![1u8; 8 << 20];
                    std::hint::black_box(&little);
                    loop {
                        std::thread::park();
                    }
                }
            }
            loop {
                std::thread::park();
            }
        }
        "half-and-half" => {
            // Each half is less than is allowed.
            let half = vec![1u8; 40 << 20];
            fs::write(path, &half)?;
            std::hint::black_box(&half);
            forever()
        }
        "mapped-twice" => {
            // 40 MiB that are open, mapped by two processes, and written through both mappings.
            let file = rustix::fs::memfd_create("shared", MemfdFlags::CLOEXEC)?;
            rustix::fs::ftruncate(&file, 40 << 20)?;
            let place = raw::map_written(file.as_fd(), 40 << 20)?;
            place.fill(1);
            if raw::fork()? == 0 {
                place.fill(2);
                forever()
            }
            // Several looks.
            std::thread::sleep(std::time::Duration::from_secs(3));
            fs::write(path, "x")?;
            Ok(())
        }
        other => Err(format!("cannot fill {other}").into()),
    }
}

pub const MIB: usize = 1 << 20;

/// More than any of the tests allows, in parts of a mebibyte.
pub const PARTS: usize = 200;

pub fn forever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Holds on to something that is in no folder, or that no process has mapped.
pub fn hold(what: &str, path: &str) -> Done {
    match what {
        "unlinked" => hold_open(|number| unlinked(path, number)),
        "unlinked-mapped" => {
            for number in 0..PARTS {
                raw::map_shared(unlinked(path, number)?.as_fd(), MIB)?;
            }
            forever()
        }
        // Each with the same number, where that is possible.
        "unlinked-mapped-apart" => {
            for number in 0..PARTS {
                let part = Path::new(path).join(format!("part-of-it-{number}"));
                let folder = File::open(path)?;
                let name = part.file_name().and_then(|name| name.to_str()).ok_or("a name")?;
                if raw::subvolume(folder.as_fd(), name).is_err() {
                    fs::create_dir(&part)?;
                }
                let part = part.to_str().ok_or("a path")?;
                raw::map_shared(unlinked(part, 0)?.as_fd(), MIB)?;
            }
            forever()
        }
        "memfd" => hold_open(|_| memfd()),
        "memfd-undumpable" => {
            raw::hide_from_debuggers()?;
            hold_open(|_| memfd())
        }
        // Of a process whose first thread has ended.
        "memfd-of-thread" => orphaned_thread(|| hold_open(|_| memfd())),
        "memory-of-thread" => orphaned_thread(|| fill("memory", "-")),
        // In a table of descriptors that the process's other threads do not have.
        "memfd-apart" => {
            let thread = std::thread::spawn(|| {
                raw::unshare(libc::CLONE_FILES).expect("a table of descriptors of its own");
                hold_open(|_| memfd()).map_err(|error| error.to_string())
            });
            thread.join().map_err(|_| "it panicked")??;
            Ok(())
        }
        // Among so many others that they cannot be looked at at once.
        "memfd-among-many" => {
            let null = File::open("/dev/null")?;
            let each = 900;
            for _ in 0..(2 * DESCRIPTORS_AT_ONCE).div_ceil(each) {
                if raw::fork()? == 0 {
                    let _many: Vec<OwnedFd> = (0..each)
                        .map(|_| null.as_fd().try_clone_to_owned())
                        .collect::<io::Result<_>>()?;
                    forever()
                }
            }
            hold_open(|_| memfd())
        }
        "segments" => segments(),
        "segments-apart" => {
            raw::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWIPC)?;
            segments()
        }
        "file-system" | "file-system-hidden" | "file-system-without-bound" => {
            enter_namespaces(libc::CLONE_NEWNS)?;
            let size = if what == "file-system-without-bound" {
                c"size=0"
            } else {
                c"size=1g"
            };
            // In a folder that can be made one that nobody enters.
            let folder = Path::new(path).join("folder");
            let path = &folder.join("mounted");
            fs::create_dir_all(path)?;
            mount("none", path, "tmpfs", MountFlags::empty(), size)?;
            for number in 0..PARTS {
                fs::write(path.join(number.to_string()), vec![b'x'; MIB])?;
            }
            if what == "file-system-hidden" {
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o000))?;
            }
            println!("filled");
            forever()
        }
        other => Err(format!("cannot hold {other}").into()),
    }
}

/// What these make, all at once.
fn hold_open<T: AsFd>(make: impl Fn(usize) -> io::Result<T>) -> Done {
    let mut held = Vec::new();
    for number in 0..PARTS {
        held.push(make(number)?);
    }
    println!("holding {}", held.len());
    forever()
}

/// A file that has lost its name.
fn unlinked(folder: &str, number: usize) -> io::Result<File> {
    let path = Path::new(folder).join(format!("part-{number}"));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    file.write_all(&[b'x'; MIB])?;
    fs::remove_file(path)?;
    Ok(file)
}

/// A file that never had one.
fn memfd() -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("part", MemfdFlags::CLOEXEC)?);
    file.write_all(&[b'x'; MIB])?;
    Ok(file)
}

fn segments() -> Done {
    for _ in 0..PARTS {
        raw::detached_segment(MIB)?;
    }
    println!("holding {PARTS}");
    forever()
}

/// Lets another thread of another process do something, and ends its first one.
fn orphaned_thread(act: impl Fn() -> Done + Send + 'static) -> Done {
    if raw::fork()? == 0 {
        std::thread::spawn(move || act().map_err(|error| println!("{error}")));
        raw::end_thread();
    }
    forever()
}

/// As many processes as possible: `once`, until there are no more; else again and again.
pub fn fork_bomb(kind: &str) -> Done {
    let mut count = 1;
    loop {
        let more = match kind {
            "threads" => std::thread::Builder::new()
                .stack_size(1 << 16)
                .spawn(|| forever())
                .map(drop),
            _ => raw::fork().map(|child| {
                if child == 0 {
                    forever();
                }
            }),
        };
        match more {
            Ok(()) => count += 1,
            Err(error) if kind == "once" => {
                println!("processes {count}: {}", error.kind());
                return Ok(());
            }
            Err(_) => std::thread::yield_now(),
        }
        if count > 2000 {
            println!("processes {count}: DONE");
            return Ok(());
        }
    }
}

/// Has as many processes as this for several looks at it.
pub fn crowd(size: usize, path: &str) -> Done {
    for _ in 1..size {
        if raw::fork()? == 0 {
            forever();
        }
    }
    std::thread::sleep(std::time::Duration::from_secs(1));
    fs::write(path, "x")?;
    Ok(())
}
