//! The folders that become a build's `/`, `/nix/store`, `/build` and `/tmp`: what is in them before
//! anything is mounted.
//!
//! `<scratch>/<build>/` has what the build writes (`store`, `build`, `tmp`) and goes with it.
//! `<scratch>/slot-<number>/` is used by one build after another: `root`, `root-fixed-output` and `root-network`
//! become `/`, which builds see read-only; `spare` and `empty` are what inputs are mounted on.
//!
//! Contents as Nix 2.34 writes them (`chroot-derivation-builder.cc`, `linux-derivation-builder.cc`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tvix_node_protocol::nix::store_path::STORE_DIR;

use super::fault::{Fault, Step};
use super::{INSIDE_GID, INSIDE_UID};
use crate::limits::SPARE_FOLDERS;
use crate::nat;
use crate::wire::Order;

/// Where the build folder is inside.
pub(crate) const BUILD_FOLDER: &str = "/build";

/// Another place for temporary files, for programs that do not respect `TMPDIR`.
pub(super) const TEMPORARY_FOLDER: &str = "/tmp";

/// Devices that every build sees, by name in `/dev`.
pub(super) const DEVICES: &[&str] = &["full", "null", "random", "tty", "urandom", "zero"];

/// Files of the machine that fixed-output builds see where they exist. Not `resolv.conf`: the machine's name
/// servers are none of a build's, the node resolves names.
const FIXED_OUTPUT_FILES: &[&str] = &["/etc/services"];

/// Files of the machine that a build sees.
pub(super) fn machine_files(order: &Order) -> impl Iterator<Item = &'static Path> {
    let files = if order.fixed_output {
        FIXED_OUTPUT_FILES
    } else {
        &[]
    };
    files.iter().map(Path::new).filter(|file| file.exists())
}

/// Where fixed-output builds find certificates, as in Nix 2.34.
pub(crate) const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The places on the machine that a build is made of.
pub(super) struct Places {
    /// What becomes `/`.
    pub(super) root: PathBuf,
    /// What becomes `/nix/store`, for outputs and mount points of inputs.
    pub(super) store: PathBuf,
    /// What becomes [`BUILD_FOLDER`].
    pub(super) build: PathBuf,
    /// What becomes `/tmp`.
    pub(super) temporary: PathBuf,
    slot: PathBuf,
}

impl Places {
    pub(super) fn of(order: &Order) -> Self {
        let (slot, scratch) = (order.slot.as_path(), order.scratch.as_path());
        let root = match (order.fixed_output, order.tunnel) {
            (true, true) => "root-network",
            (true, false) => "root-fixed-output",
            (false, _) => "root",
        };
        Self {
            root: slot.join(root),
            store: scratch.join("store"),
            build: scratch.join("build"),
            temporary: scratch.join("tmp"),
            slot: slot.to_path_buf(),
        }
    }

    /// Where something that the build sees at `inside` is mounted, before the root is changed.
    pub(super) fn mount_point(&self, inside: &Path) -> PathBuf {
        self.root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Where such a mount point is to be made, if that is a place of the one build.
    fn in_build(&self, inside: &Path) -> Option<PathBuf> {
        let places = [
            (STORE_DIR, &self.store),
            (BUILD_FOLDER, &self.build),
            (TEMPORARY_FOLDER, &self.temporary),
        ];
        places
            .into_iter()
            .find_map(|(top, outside)| Some(outside.join(inside.strip_prefix(top).ok()?)))
    }

    /// A file of no content, on which files are mounted.
    fn empty_file(&self) -> PathBuf {
        self.slot.join("empty")
    }

    /// Empty folders on which folders were mounted before and can be again.
    fn spare_folders(&self) -> PathBuf {
        self.slot.join("spare")
    }
}

/// Makes all of it, and gives the mount points of the inputs, by base name.
pub(super) fn make(order: &Order) -> Result<Vec<&str>, Fault> {
    // Modes below are meant as written.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let places = Places::of(order);
    fs::create_dir_all(places.spare_folders()).step(|| "creating the folder of the build slot")?;
    if !places.root.exists() {
        make_root(order, &places)?;
    }
    folder(&places.store, 0o1775)?;
    give(&places.store, Some(0), order)?;
    folder(&places.temporary, 0o1777)?;
    make_build_folder(order, &places.build)?;
    let mut mount_points = MountPoints::of(&places)?;
    let mut made = Vec::with_capacity(order.inputs.len());
    for (base, physical) in &order.inputs {
        let target = places.store.join(base);
        let is_mount_point = make_input(&mut mount_points, &target, physical.as_path())
            .map_err(|fault| fault.about_input(base))?;
        if is_mount_point {
            made.push(base.as_str());
        }
    }
    for path in &order.paths {
        if let Some(target) = places.in_build(path.inside.as_path()) {
            make_mount_point(&target, path.outside.as_path())?;
        }
    }
    Ok(made)
}

/// Takes the mount points of inputs out of the store again, for the next build of the slot. Nobody
/// could reach them while something was mounted on them, so they are as they were.
pub(super) fn take_back(order: &Order, made: &[&str]) -> Result<(), Fault> {
    let places = Places::of(order);
    let mut mount_points = MountPoints::of(&places)?;
    for base in made {
        mount_points
            .take_back(&places.store.join(base))
            .map_err(|fault| fault.about_input(base))?;
    }
    Ok(())
}

/// What the builds of a slot share: they see it read-only.
fn make_root(order: &Order, places: &Places) -> Result<(), Fault> {
    // Made aside, so that what is there is complete.
    let root = places.slot.join("new-root");
    crate::remove::remove_tree(&root).step(|| format!("removing '{}'", root.display()))?;
    folder(&root, 0o750)?;
    give(&root, Some(0), order)?;
    make_etc(order, &root)?;
    make_dev(order, &root)?;
    folder(&root.join("tmp"), 0o755)?;
    folder(&root.join("proc"), 0o755)?;
    folder(&root.join("nix"), 0o755)?;
    folder(&root.join("nix/store"), 0o755)?;
    folder(&root.join("build"), 0o755)?;
    let in_root = |inside: &Path| root.join(inside.strip_prefix("/").unwrap_or(inside));
    for path in &order.paths {
        let inside = path.inside.as_path();
        if places.in_build(inside).is_none() {
            make_mount_point(&in_root(inside), path.outside.as_path())?;
        }
    }
    for file in machine_files(order) {
        make_mount_point(&in_root(file), file)?;
    }
    // Last, because what is above may put something into it.
    mode(&root.join("etc"), 0o555)?;
    file(&places.empty_file(), b"")?;
    fs::rename(&root, &places.root).step(|| format!("renaming '{}'", root.display()))
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
        if order.tunnel {
            file(&etc.join("resolv.conf"), nat::resolv_conf().as_bytes())?;
        }
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

fn make_build_folder(order: &Order, build: &Path) -> Result<(), Fault> {
    folder(build, 0o700)?;
    for (name, content) in &order.files {
        let path = build.join(name);
        file(&path, &content.0)?;
        give(&path, order.host_id, order)?;
    }
    give(build, order.host_id, order)
}

/// An empty thing to mount an input over. Links cannot be mounted and are made anew: false.
fn make_input(mount_points: &mut MountPoints, target: &Path, physical: &Path) -> Result<bool, Fault> {
    let doing = || format!("looking at '{}'", physical.display());
    let kind = fs::symlink_metadata(physical).step(doing)?.file_type();
    if kind.is_dir() {
        mount_points.folder(target).map(|()| true)
    } else if kind.is_symlink() {
        let destination = fs::read_link(physical).step(doing)?;
        link(destination, target).map(|()| false)
    } else if kind.is_file() {
        mount_points.file(target).map(|()| true)
    } else {
        Err(Fault::own(
            doing(),
            "it is neither a file, a folder nor a symbolic link",
        ))
    }
}

/// Hands out empty files and folders. Making and removing hundreds of them for each build costs some
/// file systems tens of milliseconds, moving and linking them next to nothing.
struct MountPoints {
    spare: PathBuf,
    empty_file: PathBuf,
    names: Vec<OsString>,
    returned: usize,
}

impl MountPoints {
    fn of(places: &Places) -> Result<Self, Fault> {
        let spare = places.spare_folders();
        let names: io::Result<Vec<OsString>> =
            fs::read_dir(&spare).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
        Ok(Self {
            names: names.step(|| format!("reading '{}'", spare.display()))?,
            spare,
            empty_file: places.empty_file(),
            returned: 0,
        })
    }

    fn folder(&mut self, target: &Path) -> Result<(), Fault> {
        match self.names.pop() {
            Some(name) => {
                fs::rename(self.spare.join(name), target).step(|| format!("placing '{}'", target.display()))
            }
            None => folder(target, 0o755),
        }
    }

    fn file(&self, target: &Path) -> Result<(), Fault> {
        // Where there are too many links, a file of its own.
        match fs::hard_link(&self.empty_file, target) {
            Ok(()) => Ok(()),
            Err(_) => file(target, b""),
        }
    }

    fn take_back(&mut self, target: &Path) -> Result<(), Fault> {
        let doing = || format!("taking back '{}'", target.display());
        let kind = fs::symlink_metadata(target).step(doing)?.file_type();
        if !kind.is_dir() {
            return fs::remove_file(target).step(doing);
        }
        if self.names.len() + self.returned >= SPARE_FOLDERS {
            return fs::remove_dir(target).step(doing);
        }
        loop {
            self.returned += 1;
            let place = self.spare.join(self.returned.to_string());
            if !place.exists() {
                return fs::rename(target, place).step(doing);
            }
        }
    }
}

fn make_mount_point(target: &Path, source: &Path) -> Result<(), Fault> {
    let doing = || {
        format!(
            "making a place for '{}' at '{}'",
            source.display(),
            target.display()
        )
    };
    let is_folder = fs::metadata(source).step(doing)?.is_dir();
    let folders = if is_folder { Some(target) } else { target.parent() };
    if let Some(folders) = folders {
        fs::create_dir_all(folders).step(doing)?;
    }
    if !is_folder && !target.exists() {
        fs::write(target, b"").step(doing)?;
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
