//! What a build sees: mounts, and the change of `/`.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use tvix_node_protocol::nix::store_path::STORE_DIR;

use super::fault::{Fault, Step};
use super::tree::{BUILD_FOLDER, DEVICES, Places, TEMPORARY_FOLDER, machine_files};
use crate::limits::SHARED_MEMORY;
use crate::sys;
use crate::wire::Order;

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NO_PRIVILEGES: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Mounts everything and makes the build's folder the root of the file system. Nothing of the machine
/// is reachable afterwards except what was mounted.
pub(super) fn enter(order: &Order) -> Result<(), Fault> {
    let places = Places::of(order);
    let root = &places.root;
    // Nothing mounted here may show up on the machine.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step(|| "making all mounts private")?;
    // A mount of its own, because pivot_root wants one.
    bind(root, root)?;
    for (outside, inside) in [
        (&places.build, BUILD_FOLDER),
        (&places.temporary, TEMPORARY_FOLDER),
    ] {
        let target = places.mount_point(Path::new(inside));
        bind(outside, &target)?;
        restrict(&target, NO_PRIVILEGES)?;
    }
    mount_store(order, &places)?;
    mount_dev(order, root)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", root.join("proc"), "proc", flags, None).step(|| "mounting /proc")?;
    mount_host_paths(order, &places)?;
    change_root(root)
}

/// The inputs, and a place for the outputs between them.
fn mount_store(order: &Order, places: &Places) -> Result<(), Fault> {
    let store = places.mount_point(Path::new(STORE_DIR));
    bind(&places.store, &store)?;
    let mut mounted = Vec::with_capacity(order.inputs.len());
    for (base, physical) in &order.inputs {
        let target = store.join(base);
        let is_link = std::fs::symlink_metadata(&target).is_ok_and(|target| target.is_symlink());
        if !is_link {
            bind(physical.as_path(), &target).map_err(|fault| fault.about_input(base))?;
            mounted.push(target);
        }
    }
    // One call for all of them, where the kernel knows it (Linux 5.12).
    let all = c_path(&store)?;
    match sys::set_mount_attributes(&all, true, READ_ONLY | NO_PRIVILEGES, 0) {
        Ok(()) => sys::set_mount_attributes(&all, false, 0, READ_ONLY).step(|| "making /nix/store writable"),
        Err(error) if is_missing(&error) => {
            restrict(&store, NO_PRIVILEGES)?;
            mounted
                .iter()
                .try_for_each(|input| restrict(input, READ_ONLY | NO_PRIVILEGES))
        }
        Err(error) => Err(error).step(|| "making the inputs read-only"),
    }
}

fn mount_dev(order: &Order, root: &Path) -> Result<(), Fault> {
    let dev = root.join("dev");
    let kvm = order.kvm.then_some("kvm");
    for device in DEVICES.iter().copied().chain(kvm) {
        bind(&Path::new("/dev").join(device), &dev.join(device))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let most = order
        .memory
        .map_or(SHARED_MEMORY.to_owned(), |bytes| bytes.to_string());
    let shared_memory = option(&format!("size={most},mode=1777"))?;
    mount("none", dev.join("shm"), "tmpfs", flags, shared_memory.as_c_str()).step(|| "mounting /dev/shm")?;
    let terminals = option("newinstance,ptmxmode=0666,mode=0620")?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("none", dev.join("pts"), "devpts", flags, terminals.as_c_str()).step(|| "mounting /dev/pts")
}

fn mount_host_paths(order: &Order, places: &Places) -> Result<(), Fault> {
    for path in &order.paths {
        let target = places.mount_point(path.inside.as_path());
        mount_bind_recursive(path.outside.as_path(), &target)
            .step(|| showing(path.outside.as_path(), &target))?;
        let read_only = if path.writable { 0 } else { READ_ONLY };
        restrict(&target, libc::MOUNT_ATTR_NOSUID | read_only)?;
    }
    for file in machine_files(order) {
        let target = places.mount_point(file);
        bind(file, &target)?;
        restrict(&target, READ_ONLY | NO_PRIVILEGES)?;
    }
    Ok(())
}

fn change_root(root: &Path) -> Result<(), Fault> {
    rustix::process::chdir(root).step(|| "entering the new root")?;
    // The old root comes to lie on the new one, and is taken away (pivot_root(2), "pivot_root(".", ".")").
    rustix::process::pivot_root(".", ".").step(|| "changing the root")?;
    unmount(".", UnmountFlags::DETACH).step(|| "unmounting the old root")?;
    rustix::process::chdir("/").step(|| "entering the new root")?;
    restrict(Path::new("/"), READ_ONLY | NO_PRIVILEGES)
}

fn bind(source: &Path, target: &Path) -> Result<(), Fault> {
    mount_bind(source, target).step(|| showing(source, target))
}

fn showing(source: &Path, target: &Path) -> String {
    format!("mounting '{}' on '{}'", source.display(), target.display())
}

/// Takes rights away from one mount.
fn restrict(target: &Path, attributes: u64) -> Result<(), Fault> {
    let step = || format!("restricting the mount '{}'", target.display());
    match sys::set_mount_attributes(&c_path(target)?, false, attributes, 0) {
        Err(error) if is_missing(&error) => remount(target, attributes).step(step),
        result => result.step(step),
    }
}

/// The same before Linux 5.12. Flags that the mount has already must be repeated: some may not be
/// taken away by who does not own them.
fn remount(target: &Path, attributes: u64) -> io::Result<()> {
    let mut flags = MountFlags::BIND;
    for (attribute, flag) in [
        (READ_ONLY, MountFlags::RDONLY),
        (libc::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (libc::MOUNT_ATTR_NODEV, MountFlags::NODEV),
    ] {
        if attributes & attribute != 0 {
            flags |= flag;
        }
    }
    let has = statvfs(target)?.f_flag;
    for (now, flag) in [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if has.contains(now) {
            flags |= flag;
        }
    }
    mount_remount(target, flags, "")?;
    Ok(())
}

/// Whether the kernel, or a container's filter, does not know a system call.
fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSYS)
}

fn c_path(path: &Path) -> Result<CString, Fault> {
    CString::new(path.as_os_str().as_bytes()).step(|| format!("using the path '{}'", path.display()))
}

fn option(text: &str) -> Result<CString, Fault> {
    CString::new(text).step(|| "writing mount options")
}
