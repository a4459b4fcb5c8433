//! The folder that becomes a build's `/`: what is in it before anything is mounted.
//!
//! Contents as Nix 2.34 writes them (`chroot-derivation-builder.cc`, `linux-derivation-builder.cc`).

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

use super::fault::{Fault, Step};
use super::{INSIDE_GID, INSIDE_UID};
use crate::wire::Order;

/// Where the build folder is inside.
pub(crate) const BUILD_FOLDER: &str = "/build";

/// Devices that every build sees, by name in `/dev`.
pub(super) const DEVICES: &[&str] = &["full", "null", "random", "tty", "urandom", "zero"];

/// Files of the machine that fixed-output builds see where they exist. Not `resolv.conf`: a build
/// reaches the network through the node's proxy, which resolves names, and has no name server.
pub(super) const FIXED_OUTPUT_FILES: &[&str] = &["/etc/services"];

/// Where fixed-output builds find certificates, as in Nix 2.34.
pub(crate) const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The folder that becomes `/`.
pub(super) fn root(order: &Order) -> PathBuf {
    order.scratch.as_path().join("root")
}

/// The folder that becomes [`BUILD_FOLDER`].
pub(super) fn build_folder(order: &Order) -> PathBuf {
    order.scratch.as_path().join("build")
}

/// The sandbox's path of something in the root folder, on the machine.
pub(super) fn outside(root: &Path, inside: &Path) -> PathBuf {
    root.join(inside.strip_prefix("/").unwrap_or(inside))
}

/// Makes all of it.
pub(super) fn make(order: &Order) -> Result<(), Fault> {
    // Modes below are meant as written.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let root = root(order);
    folder(&root, 0o750)?;
    give(&root, Some(0), order)?;
    make_etc(order, &root)?;
    make_dev(order, &root)?;
    folder(&root.join("tmp"), 0o1777)?;
    folder(&root.join("proc"), 0o755)?;
    folder(&outside(&root, Path::new(BUILD_FOLDER)), 0o755)?;
    folder(&root.join("nix"), 0o755)?;
    let store = root.join("nix/store");
    folder(&store, 0o1775)?;
    give(&store, Some(0), order)?;
    make_build_folder(order)?;
    for (base, physical) in &order.inputs {
        make_input(&store.join(base), physical.as_path()).map_err(|fault| fault.about_input(base))?;
    }
    for path in &order.paths {
        make_mount_point(&root, path.inside.as_path(), path.outside.as_path())?;
    }
    if order.fixed_output {
        for file in FIXED_OUTPUT_FILES
            .iter()
            .map(Path::new)
            .filter(|file| file.exists())
        {
            make_mount_point(&root, file, file)?;
        }
    }
    // Last, because what is above may put something into it.
    mode(&root.join("etc"), 0o555)
}

fn make_etc(order: &Order, root: &Path) -> Result<(), Fault> {
    let etc = root.join("etc");
    folder(&etc, 0o755)?;
    let passwd = format!(
        "root:x:0:0:Nix build user:{BUILD_FOLDER}:/noshell\n\
         nixbld:x:{INSIDE_UID}:{INSIDE_GID}:Nix build user:{BUILD_FOLDER}:/noshell\n\
         nobody:x:65534:65534:Nobody:/:/noshell\n"
    );
    file(&etc.join("passwd"), passwd.as_bytes())?;
    let group = format!("root:x:0:\nnixbld:!:{INSIDE_GID}:\nnogroup:x:65534:\n");
    file(&etc.join("group"), group.as_bytes())?;
    file(&etc.join("hosts"), b"127.0.0.1 localhost\n::1 localhost\n")?;
    if order.fixed_output {
        file(&etc.join("nsswitch.conf"), b"hosts: files dns\nservices: files\n")?;
    }
    Ok(())
}

fn make_dev(order: &Order, root: &Path) -> Result<(), Fault> {
    let dev = root.join("dev");
    folder(&dev, 0o755)?;
    folder(&dev.join("shm"), 0o755)?;
    folder(&dev.join("pts"), 0o755)?;
    let kvm = order.kvm.then_some("kvm");
    for device in DEVICES.iter().copied().chain(kvm) {
        file(&dev.join(device), b"")?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "/dev/pts/ptmx"),
    ] {
        link(target, &dev.join(name))?;
    }
    Ok(())
}

fn make_build_folder(order: &Order) -> Result<(), Fault> {
    let build = build_folder(order);
    folder(&build, 0o700)?;
    for (name, content) in &order.files {
        let path = build.join(name);
        file(&path, &content.0)?;
        give(&path, order.host_id, order)?;
    }
    give(&build, order.host_id, order)
}

/// An empty thing to mount an input over; links cannot be mounted and are made anew.
fn make_input(target: &Path, physical: &Path) -> Result<(), Fault> {
    let doing = || format!("looking at '{}'", physical.display());
    let kind = fs::symlink_metadata(physical).step(doing)?.file_type();
    if kind.is_dir() {
        folder(target, 0o555)
    } else if kind.is_symlink() {
        let destination = fs::read_link(physical).step(doing)?;
        link(destination, target)
    } else if kind.is_file() {
        file(target, b"")
    } else {
        Err(Fault::own(
            doing(),
            "it is neither a file, a folder nor a symbolic link",
        ))
    }
}

fn make_mount_point(root: &Path, inside: &Path, source: &Path) -> Result<(), Fault> {
    let target = outside(root, inside);
    let doing = || format!("showing '{}' as '{}'", source.display(), inside.display());
    let is_folder = fs::metadata(source).step(doing)?.is_dir();
    let folders = if is_folder {
        Some(target.as_path())
    } else {
        target.parent()
    };
    if let Some(folders) = folders {
        fs::create_dir_all(folders).step(doing)?;
    }
    if !is_folder && !target.exists() {
        fs::write(&target, b"").step(doing)?;
    }
    Ok(())
}

fn folder(path: &Path, permissions: u32) -> Result<(), Fault> {
    fs::create_dir(path).step(|| format!("creating '{}'", path.display()))?;
    mode(path, permissions)
}

fn file(path: &Path, content: &[u8]) -> Result<(), Fault> {
    fs::write(path, content).step(|| format!("writing '{}'", path.display()))
}

fn link(target: impl AsRef<Path>, path: &Path) -> Result<(), Fault> {
    symlink(target, path).step(|| format!("creating '{}'", path.display()))
}

fn mode(path: &Path, permissions: u32) -> Result<(), Fault> {
    fs::set_permissions(path, fs::Permissions::from_mode(permissions))
        .step(|| format!("changing the mode of '{}'", path.display()))
}

/// Gives something to the build's group, and to a user where one is named, if the node is root.
fn give(path: &Path, user: Option<u32>, order: &Order) -> Result<(), Fault> {
    let Some(group) = order.host_id else {
        return Ok(());
    };
    let change: fn(&Path, Option<u32>, Option<u32>) -> io::Result<()> = |path, user, group| {
        if path.is_dir() {
            chown(path, user, group)
        } else {
            lchown(path, user, group)
        }
    };
    change(path, user, Some(group)).step(|| format!("changing the owner of '{}'", path.display()))
}
