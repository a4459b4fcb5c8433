//! Running a program with the home's store at `/nix/store`.
//!
//! `tvix-node run` and `shell` start this program again as [`ENTER_ARGUMENT`], which has one
//! thread, makes a user and a mount namespace, builds a root folder that looks like the machine's
//! with the home's store (read-only, over the machine's own where there is one) at `/nix/store`,
//! and becomes the wanted program. No privilege is needed and nothing stays mounted.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

/// First argument of the program when it is to enter a namespace and become another program.
pub const ENTER_ARGUMENT: &str = "__enter-store";

/// Why a program could not be run with the store in sight.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The kernel refuses a namespace of one's own.
    #[error("this machine does not let you see the store at /nix/store ({step}: {source}). {advice}")]
    Refused {
        /// What was tried.
        step: String,
        /// What the kernel said.
        source: io::Error,
        /// The way out.
        advice: String,
    },
    /// The program is not there or not executable.
    #[error("'{}' cannot be run: {source}", .program.display())]
    Program {
        /// Which.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The command that runs `program` with `store` (the folder `nix/store` of a home) in sight.
///
/// # Errors
/// The running program's own file cannot be found.
pub fn enter_command(store: &Path, program: &Path, arguments: &[OsString]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(ENTER_ARGUMENT)
        .arg(store)
        .arg(program)
        .args(arguments);
    Ok(command)
}

/// What the program does when its first argument is [`ENTER_ARGUMENT`]; `arguments` are those that
/// follow. Only returns with an error.
#[must_use]
pub fn enter(arguments: &[OsString]) -> EnterError {
    let [store, program, rest @ ..] = arguments else {
        return EnterError::Program {
            program: PathBuf::new(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "no program was named"),
        };
    };
    if let Err(error) = show_store(Path::new(store)) {
        return error;
    }
    let source = Command::new(program).args(rest).exec();
    EnterError::Program {
        program: program.into(),
        source,
    }
}

fn show_store(store: &Path) -> Result<(), EnterError> {
    let here = std::env::current_dir().ok();
    let (uid, gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    // SAFETY: this process has one thread and shares no file descriptor table whose separation
    // could surprise another thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
        .map_err(|error| refused("making a user namespace", error.into()))?;
    let write = |file: &str, text: String| {
        fs::write(file, text).map_err(|error| refused(&format!("writing {file}"), error))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;

    step(
        "making mounts private",
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC),
    )?;
    // Any folder can carry the new root; it is only covered, and only in this namespace.
    let root = Path::new("/tmp");
    // The store's folder may itself lie below the folder that is about to be covered.
    let store_folder = rustix::fs::open(
        store,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|error| refused(&format!("opening {}", store.display()), error.into()))?;
    // Without links, as a collection of garbage knows it: a home that was not there yet when it was named has them still.
    let store_name = fs::canonicalize(store)
        .map_err(|error| refused(&format!("following the links in {}", store.display()), error))?;
    let machine: Vec<_> = fs::read_dir("/")
        .and_then(|entries| entries.collect::<Result<_, _>>())
        .map_err(|error| refused("reading /", error))?;
    // Before it is covered: what is mounted from it afterwards would be the cover.
    let covered = Covered::take(root)?;
    step(
        "mounting a root",
        rustix::mount::mount("tvix-node", root, "tmpfs", MountFlags::empty(), c"mode=755"),
    )?;
    for entry in machine {
        let name = entry.file_name();
        let (from, to) = (Path::new("/").join(&name), root.join(&name));
        let kind = entry.file_type().map_err(|error| refused("reading /", error))?;
        let making = |result: io::Result<()>| {
            result.map_err(|error| refused(&format!("making {}", to.display()), error))
        };
        if name == "nix" {
            continue;
        } else if kind.is_symlink() {
            making(fs::read_link(&from).and_then(|target| std::os::unix::fs::symlink(target, &to)))?;
        } else if kind.is_dir() {
            making(fs::create_dir(&to))?;
            if from == root {
                covered.show_at(&to)?;
            } else {
                bind(&from, &to)?;
            }
        } else if kind.is_file() {
            making(fs::write(&to, ""))?;
            bind(&from, &to)?;
        }
    }
    mount_stores(
        &store_name,
        &descriptor_path(&store_folder),
        &root.join("nix/store"),
    )?;

    step("entering the root", rustix::process::chdir(root))?;
    step("changing the root", rustix::process::pivot_root(".", "."))?;
    step(
        "leaving the old root",
        rustix::mount::unmount(".", UnmountFlags::DETACH),
    )?;
    step("entering /", rustix::process::chdir("/"))?;
    if let Some(here) = here {
        // A folder that cannot be entered any more leaves the program in `/`, as a shell would.
        drop(std::env::set_current_dir(here));
    }
    Ok(())
}

/// A folder that something else will be mounted on.
enum Covered {
    /// With all that is mounted below it, not mounted anywhere yet.
    Tree(OwnedFd),
    /// Kernels before 5.2 have no such trees: the folder alone.
    Folder(OwnedFd),
}

impl Covered {
    fn take(folder: &Path) -> Result<Self, EnterError> {
        let opening =
            |error: rustix::io::Errno| refused(&format!("opening {}", folder.display()), error.into());
        let whole =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        match rustix::mount::open_tree(rustix::fs::CWD, folder, whole) {
            Ok(tree) => Ok(Self::Tree(tree)),
            Err(rustix::io::Errno::NOSYS) => {
                let flags =
                    rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
                let folder = rustix::fs::open(folder, flags, rustix::fs::Mode::empty()).map_err(opening)?;
                Ok(Self::Folder(folder))
            }
            Err(error) => Err(opening(error)),
        }
    }

    fn show_at(&self, place: &Path) -> Result<(), EnterError> {
        let shown = match self {
            Self::Tree(tree) => {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                rustix::mount::move_mount(tree, "", rustix::fs::CWD, place, flags)
            }
            Self::Folder(folder) => rustix::mount::mount_bind(descriptor_path(folder), place),
        };
        step(
            &format!("mounting what was covered on {}", place.display()),
            shown,
        )
    }
}

/// Mounts the home's store read-only, over the machine's own where there is one. `name` is where the store lies,
/// without links: such a mount is called so, because a collection of garbage tells by it whose store a program sees.
fn mount_stores(name: &Path, store: &Path, place: &Path) -> Result<(), EnterError> {
    fs::create_dir_all(place).map_err(|error| refused(&format!("making {}", place.display()), error))?;
    if Path::new("/nix/store").is_dir() {
        let layers = format!("lowerdir={}:/nix/store,userxattr", store.display());
        if let Ok(layers) = CString::new(layers)
            && rustix::mount::mount(name, place, "overlay", MountFlags::RDONLY, layers.as_c_str()).is_ok()
        {
            return Ok(());
        }
        // Kernels before 5.11 have no overlays for users: then the home's store alone is in sight.
    }
    bind(store, place)?;
    step(
        "making the store read-only",
        rustix::mount::mount_remount(
            place,
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
            c"",
        ),
    )
}

fn bind(from: &Path, to: &Path) -> Result<(), EnterError> {
    rustix::mount::mount_bind_recursive(from, to).map_err(|error| {
        refused(
            &format!("mounting {} on {}", from.display(), to.display()),
            error.into(),
        )
    })
}

fn descriptor_path(descriptor: &impl std::os::fd::AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

fn step(what: &str, result: rustix::io::Result<()>) -> Result<(), EnterError> {
    result.map_err(|error| refused(what, error.into()))
}

fn refused(step: &str, source: io::Error) -> EnterError {
    EnterError::Refused {
        step: step.to_owned(),
        source,
        advice: advice(),
    }
}

/// What the administrator of this machine has to change, as far as it can be told from here.
fn advice() -> String {
    let number = |file: &str| {
        fs::read_to_string(file)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        "User namespaces are off for users: `sysctl kernel.unprivileged_userns_clone=1` as root turns them on.".to_owned()
    } else if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        "AppArmor keeps programs from user namespaces: as root, `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, \
         or an AppArmor profile with `userns` for this program, allows them."
            .to_owned()
    } else if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        "The number of user namespaces is limited to 0: `sysctl user.max_user_namespaces=10000` as root raises it.".to_owned()
    } else {
        "A container may have to be started with fewer restrictions (seccomp, masked /proc). \
         The files themselves are in the home's nix/store folder."
            .to_owned()
    }
}

/// The absolute path of a program for [`enter_command`], looked up in `PATH` as a shell does.
#[must_use]
pub fn find_program(name: &std::ffi::OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
