//! Acts that fill file systems in memory which are mounted nowhere that one could look. Nothing is in them before they are there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, mount_bind, mount_bind_recursive, unmount,
};
use rustix::process::{chdir, chroot, fchdir};
use rustix::thread::{CpuSet, move_into_link_name_space, sched_getcpu, sched_setaffinity};
use tvix_node_builder::limits::{BOUND_NAMESPACES, IPC_NAMESPACES};

use crate::flood::{MIB, PARTS, forever};
use crate::{Done, raw};

/// Less than a test allows: what is in one place at a time.
pub const SOME: usize = 40;

/// Namespaces of its own, with all rights there.
pub fn enter_namespaces(kinds: i32) -> Done {
    raw::unshare(libc::CLONE_NEWUSER | kinds)?;
    for (file, map) in [
        ("uid_map", "0 1000 1"),
        ("setgroups", "deny"),
        ("gid_map", "0 100 1"),
    ] {
        fs::write(format!("/proc/self/{file}"), map)?;
    }
    Ok(())
}

/// A namespace can be bound to a file of an older one only. Since Linux 6.18 that is one with a lower number, of which
/// each processor has some of its own.
fn stay_on_this_processor() -> io::Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    Ok(sched_setaffinity(None, &here)?)
}

/// Fills one, and holds it in one way.
pub fn detach(how: &str) -> Done {
    if how == "segments-of-namespace" {
        return segments_of_namespaces();
    }
    stay_on_this_processor()?;
    enter_namespaces(libc::CLONE_NEWNS)?;
    match how {
        "folder" => fill(&let_go("size=1g")?),
        "folder-hidden" => {
            raw::hide_from_debuggers()?;
            fill(&let_go("size=1g")?)
        }
        "folder-of-nothing-mounted" => fill(&never_mounted()?),
        // The highest folder has most, and another one is held.
        "folder-without-bound" => {
            let place = mounted("size=0")?;
            fs::create_dir_all(place.join("a/b"))?;
            let below = folder(&place.join("a/b"))?;
            unmount(&place, UnmountFlags::DETACH)?;
            fill_at(&openat(&below, "../..", FOLDER, Mode::empty())?, PARTS)?;
            forever()
        }
        "file" => {
            let held = let_go("size=1g")?;
            let small = openat(
                &held,
                "small",
                OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC,
                Mode::RWXU,
            )?;
            // Under way it is seen by its folder.
            for part in 0..PARTS / SOME {
                let apart = let_go("size=1g")?;
                let small = openat(&apart, "small", OFlags::CREATE | OFlags::RDWR, Mode::RWXU)?;
                fill_at(&apart, SOME)?;
                std::mem::forget(small);
                println!("part {part}");
            }
            drop(small);
            forever()
        }
        "working-directory" => {
            let held = let_go("size=1g")?;
            fchdir(&held)?;
            drop(held);
            fill_here(Path::new("."))
        }
        "root" => {
            let place = mounted("size=1g")?;
            let machine = folder(Path::new("/"))?;
            chroot(&place)?;
            fchdir(&machine)?;
            unmount(place.strip_prefix("/")?, UnmountFlags::DETACH)?;
            fill_here(Path::new("/"))
        }
        "working-directory-of-thread" => on_thread(|| {
            raw::unshare(libc::CLONE_FS)?;
            let held = let_go("size=1g")?;
            fchdir(&held)?;
            drop(held);
            fill_here(Path::new("."))
        }),
        "mounted-by-thread" => on_thread(|| {
            raw::unshare(libc::CLONE_NEWNS)?;
            fill_here(&mounted("size=1g")?)
        }),
        // Where no path of its own leads.
        "mounted-outside-of-root" => {
            let place = mounted("size=1g")?;
            let machine = folder(Path::new("/"))?;
            chroot("/build")?;
            fchdir(&machine)?;
            fill_here(place.strip_prefix("/")?)
        }
        "namespace" => {
            let mut held = Vec::new();
            apart(PARTS / SOME, SOME, |_, namespace| {
                held.push(namespace);
                Ok(())
            })?;
            forever()
        }
        "namespace-bound-to-file" => {
            apart(PARTS / SOME, SOME, bind)?;
            forever()
        }
        "mounted-at-an-odd-name" => {
            let folder = PathBuf::from(OsStr::from_bytes(b"/tmp/ \\040\n\xff"));
            fs::create_dir(&folder)?;
            chdir(&folder)?;
            fill_here(&mounted_at("mounted".into(), "size=1g")?)
        }
        "mounted-at-a-long-path" => {
            go_deep()?;
            fill_here(&mounted_at("mounted".into(), "size=1g")?)
        }
        "mounted-after-many" => {
            go_deep()?;
            File::create("file")?;
            for _ in 0..1200 {
                mount_bind("/dev/null", "file")?;
            }
            fill_here(&mounted("size=1g")?)
        }
        // As many as a build with so many inputs has, for some looks.
        "nothing-after-many" => {
            File::create("file")?;
            for _ in 0..7000 {
                mount_bind("/dev/null", "file")?;
            }
            std::thread::sleep(std::time::Duration::from_secs(2));
            Ok(())
        }
        // With nothing in them.
        "more-bound-namespaces-than-are-looked-into" => {
            apart(BOUND_NAMESPACES + 1, 0, bind)?;
            forever()
        }
        other => Err(format!("cannot hold one by its {other}").into()),
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub fn folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, FOLDER, Mode::empty())?)
}

/// A new file system in memory.
fn mounted(options: &str) -> Result<PathBuf, Box<dyn std::error::Error>> {
    mounted_at("/tmp/mounted".into(), options)
}

/// The same there.
pub fn mounted_at(place: PathBuf, options: &str) -> Result<PathBuf, Box<dyn std::error::Error>> {
    fs::create_dir_all(&place)?;
    let options = std::ffi::CString::new(options)?;
    mount("none", &place, "tmpfs", MountFlags::empty(), options.as_c_str())?;
    Ok(place)
}

/// To where the path is longer than one that can be opened.
fn go_deep() -> Done {
    chdir("/tmp")?;
    for _ in 0..20 {
        let name = "d".repeat(250);
        fs::create_dir(&name)?;
        chdir(&name)?;
    }
    Ok(())
}

/// What would lead whoever watches out of the build, or make him wait, while it uses next to nothing.
pub fn mislead(out: &str) -> Done {
    enter_namespaces(libc::CLONE_NEWNS)?;
    for folder in ["/build", "/tmp", "/nix/store"] {
        let folder = Path::new(folder);
        for (name, target) in [
            ("absolute", "/"),
            ("up", "../../../../../../.."),
            ("magic", "/proc/self/root"),
            ("process", "/proc/1/cwd"),
        ] {
            symlink(target, folder.join(name))?;
        }
        raw::make_node(&folder.join("fifo").to_string_lossy(), libc::S_IFIFO | 0o666, 0)?;
    }
    // In memory is nothing of that.
    let unbound = mounted_at("/tmp/unbound".into(), "size=0")?;
    fs::create_dir(unbound.join("machine"))?;
    mount_bind_recursive("/", unbound.join("machine"))?;
    symlink("/", unbound.join("link"))?;
    raw::make_node("/tmp/unbound/fifo", libc::S_IFIFO | 0o666, 0)?;
    // The way to it leads elsewhere every other moment, and so do folders of the build.
    fs::create_dir_all("/tmp/way/mounted")?;
    mount(
        "none",
        "/tmp/way/mounted",
        "tmpfs",
        MountFlags::empty(),
        c"size=0",
    )?;
    fs::create_dir("/build/way")?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        for folder in ["/tmp", "/build"] {
            let [way, link] = ["way", "absolute"].map(|name| Path::new(folder).join(name));
            renameat_with(CWD, way, CWD, link, RenameFlags::EXCHANGE)?;
        }
    }
    for name in ["absolute", "up", "magic", "process", "fifo"] {
        fs::remove_file(Path::new("/nix/store").join(name))?;
    }
    fs::write(out, "x")?;
    Ok(())
}

/// One that is mounted no more.
fn let_go(options: &str) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let place = mounted(options)?;
    let held = folder(&place)?;
    unmount(&place, UnmountFlags::DETACH)?;
    Ok(held)
}

/// One that never was.
fn never_mounted() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "size", "1g")?;
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// Binds a namespace to a file.
fn bind(number: usize, namespace: File) -> Done {
    let file = PathBuf::from(format!("/tmp/namespace-{number}"));
    File::create(&file)?;
    mount_bind(format!("/proc/self/fd/{}", namespace.as_raw_fd()), &file)?;
    Ok(())
}

/// Some in each of several namespaces, which nobody is in afterwards.
fn apart(count: usize, some: usize, mut keep: impl FnMut(usize, File) -> Done) -> Done {
    let own = File::open("/proc/self/ns/mnt")?;
    for number in 0..count {
        raw::unshare(libc::CLONE_NEWNS)?;
        fill_at(&folder(&mounted("size=1g")?)?, some)?;
        let namespace = File::open("/proc/self/ns/mnt")?;
        move_into_link_name_space(own.as_fd(), None)?;
        chdir("/")?;
        keep(number, namespace)?;
        println!("namespace {number}");
    }
    Ok(())
}

fn segments_of_namespaces() -> Done {
    enter_namespaces(libc::CLONE_NEWIPC)?;
    let own = File::open("/proc/self/ns/ipc")?;
    let mut held = Vec::new();
    // Nothing in as many as are kept in sight, and some in each of the others.
    for number in 0..IPC_NAMESPACES + PARTS / SOME {
        raw::unshare(libc::CLONE_NEWIPC)?;
        if number >= IPC_NAMESPACES {
            for _ in 0..SOME {
                raw::detached_segment(MIB)?;
            }
        }
        held.push(File::open("/proc/self/ns/ipc")?);
        move_into_link_name_space(own.as_fd(), None)?;
    }
    forever()
}

fn on_thread(act: impl FnOnce() -> Done + Send + 'static) -> Done {
    let thread = std::thread::spawn(|| act().map_err(|error| error.to_string()));
    thread.join().map_err(|_| "it panicked")??;
    Ok(())
}

fn fill(held: &OwnedFd) -> Done {
    fill_at(held, PARTS)?;
    forever()
}

fn fill_here(place: &Path) -> Done {
    for number in 0..PARTS {
        fs::write(place.join(number.to_string()), vec![b'x'; MIB])?;
    }
    println!("filled");
    forever()
}

fn fill_at(held: &OwnedFd, parts: usize) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    for number in 0..parts {
        let mut file = File::from(openat(held, number.to_string(), flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(&vec![b'x'; MIB])?;
    }
    println!("filled {parts}");
    Ok(())
}
