//! How much of the disk a build uses.
//!
//! There is no limit that an ordinary user could set on a folder, so it is looked at from time to time.
//! Seldom enough to cost little: the next look comes after a multiple of the time that the last one took.
//! What has no name any more is found at the processes that have it ([`crate::unlinked`]). A single file is bounded by
//! the kernel (`RLIMIT_FSIZE`).

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmod, fchmod, fstat, openat, statat};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::held::Held;
use crate::limits::{DISK_DEPTH, DISK_ENTRY_BYTES, DISK_LOOK, DISK_LOOK_SHARE, FULL_BYTES, FULL_FILES};
use crate::processes::below;
use crate::scratch::Scratch;
use crate::unlinked::Unlinked;

/// Ends when a build has more than `limit` bytes: in its folders, and in files without a name that processes below its
/// helper have.
pub(crate) async fn exceeds(build: &Scratch, helper: Option<u32>, limit: u64) {
    let mut nameless = Unlinked::beside(build.path()).ok().map(Held::new);
    loop {
        let began = Instant::now();
        let folders = build.written();
        let look = tokio::task::spawn_blocking(move || {
            let found = usage(&folders, limit);
            let held = match (
                &mut nameless,
                helper.and_then(|helper| i32::try_from(helper).ok()),
            ) {
                (Some(nameless), Some(helper)) if found <= limit => nameless.look(&of_build(helper)),
                _ => 0,
            };
            (found.saturating_add(held), nameless)
        });
        // Only the end of the runtime ends it otherwise.
        let Ok((used, looked)) = look.await else {
            return std::future::pending().await;
        };
        nameless = looked;
        if used > limit {
            return;
        }
        tokio::time::sleep((began.elapsed() * DISK_LOOK_SHARE).max(DISK_LOOK)).await;
    }
}

/// The processes of the build that a helper has.
fn of_build(helper: i32) -> Vec<i32> {
    let below = below(helper).into_iter().map(|process| process.id);
    below.filter(|&process| process != helper).collect()
}

/// Whether the folders of a build whose processes are dead have more than `limit` bytes.
pub(crate) async fn is_exceeded(folders: Vec<PathBuf>, limit: u64) -> bool {
    let used = tokio::task::spawn_blocking(move || usage(&folders, limit)).await;
    used.is_ok_and(|used| used > limit)
}

/// Whether the file system of a folder has so few bytes, or files, left that what failed may have failed for want of them.
pub(crate) fn is_full(folder: &Path) -> bool {
    let Ok(room) = rustix::fs::statvfs(folder) else {
        return false;
    };
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    // File systems that make room for files as they come say that they have none at all.
    has_little(free, (room.f_files > 0).then_some(room.f_favail))
}

/// Bytes that are free, and files that there can still be, if those have a bound.
fn has_little(free: u64, files: Option<u64>) -> bool {
    free < FULL_BYTES || files.is_some_and(|files| files < FULL_FILES)
}

/// Bytes on disk below some folders; stops counting beyond `enough`.
pub(crate) fn usage(folders: &[PathBuf], enough: u64) -> u64 {
    let mut count = Count::default();
    for folder in folders {
        if count.bytes > enough {
            break;
        }
        count.folder(folder, enough);
    }
    count.bytes
}

/// Bytes in memory below a folder of somebody hostile that is open, in its file system alone, and how many entries that took. Modes are
/// left as they are: what cannot be looked into counts as more than there is. `each` is what an entry counts beside its content.
pub(crate) fn usage_below(folder: impl AsFd, each: u64, enough: u64) -> (u64, usize) {
    let mut count = Count {
        leaves_modes: true,
        names_count: true,
        device: fstat(&folder).ok().map(|about| about.st_dev),
        each,
        ..Count::default()
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(folder, c".", flags, Mode::empty()).and_then(Dir::new) {
        Ok(entries) => count.below(Open { entries, lent: None }, enough),
        Err(Errno::ACCESS) => count.bytes = u64::MAX,
        // It is no folder, or gone.
        Err(_) => {}
    }
    (count.bytes, count.entries)
}

struct Count {
    bytes: u64,
    entries: usize,
    /// What each of them counts beside its content.
    each: u64,
    /// Where what counts lies, if not anywhere.
    device: Option<u64>,
    /// Folders that their owner cannot look into stay so.
    leaves_modes: bool,
    /// Each further name of a file is an entry: in memory the kernel keeps all of them.
    names_count: bool,
    /// Files with several names, which count once.
    linked: BTreeSet<(u64, u64)>,
}

impl Default for Count {
    fn default() -> Self {
        Self {
            bytes: 0,
            entries: 0,
            each: DISK_ENTRY_BYTES,
            device: None,
            leaves_modes: false,
            names_count: false,
            linked: BTreeSet::new(),
        }
    }
}

impl Count {
    /// Everything below a folder. What disappears meanwhile is not there any more.
    fn folder(&mut self, top: &Path, enough: u64) {
        // The build's as well, which may have taken the right to read it away.
        let stat = statat(CWD, top, AtFlags::SYMLINK_NOFOLLOW);
        if let Ok(folder) = stat.and_then(|stat| Open::at(CWD, top, stat.st_mode)) {
            self.below(folder, enough);
        }
    }

    fn below(&mut self, top: Open, enough: u64) {
        let mut open = vec![top];
        while let Some(folder) = open.last_mut() {
            let Some(Ok(entry)) = folder.entries.read() else {
                open.pop();
                continue;
            };
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(parent) = folder.entries.fd() else { continue };
            let Ok(stat) = statat(parent, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            self.entries += 1;
            if self.device.is_some_and(|device| device != stat.st_dev) {
                continue;
            }
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let is_first = is_folder || stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino));
            if is_first {
                let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
                self.bytes = self.bytes.saturating_add(blocks * 512);
            }
            if is_first || self.names_count {
                self.bytes = self.bytes.saturating_add(self.each);
            }
            if self.bytes > enough {
                return;
            }
            if !is_folder {
                continue;
            }
            let below = match self.leaves_modes {
                true => Open::as_it_is(parent, entry.file_name()),
                false => Open::at(parent, entry.file_name(), stat.st_mode),
            };
            match below {
                Ok(below) if open.len() < DISK_DEPTH => open.push(below),
                Err(Errno::ACCESS) if self.leaves_modes => {
                    self.bytes = u64::MAX;
                    return;
                }
                Ok(_) => {
                    // Hidden from sight, whatever is in there.
                    self.bytes = u64::MAX;
                    return;
                }
                Err(_) => {}
            }
        }
    }
}

/// A folder that is being looked into.
struct Open {
    entries: Dir,
    /// The mode that it had, where its owner could not look into it.
    lent: Option<Mode>,
}

impl Open {
    fn as_it_is(parent: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entries = Dir::new(openat(parent, name, flags, Mode::empty())?)?;
        Ok(Self { entries, lent: None })
    }

    fn at(parent: impl AsFd, name: impl Arg + Copy, mode: u32) -> Result<Self, Errno> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if mode.contains(Mode::RUSR | Mode::XUSR) {
            let entries = Dir::new(openat(parent, name, flags, Mode::empty())?)?;
            return Ok(Self { entries, lent: None });
        }
        // Through a handle: the name may be something else by now.
        let handle = openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
        let itself = format!("/proc/self/fd/{}", handle.as_raw_fd());
        chmod(&itself, Mode::RWXU)?;
        let entries = Dir::new(openat(
            CWD,
            &itself,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?)?;
        let lent = Some(mode);
        Ok(Self { entries, lent })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let (Some(mode), Ok(folder)) = (self.lent, self.entries.fd()) {
            // Fails where it is gone.
            let _gone = fchmod(folder, mode);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::mpsc::TryRecvError;

    use rustix::fs::{RenameFlags, mknodat, renameat_with};

    use super::*;

    const ALL: u64 = u64::MAX;

    #[test]
    fn files_count_once_whatever_their_names_and_modes() {
        let place = tempfile::tempdir().unwrap();
        let top = place.path().join("top");
        fs::create_dir_all(top.join("a/b")).unwrap();
        let before = usage(std::slice::from_ref(&top), ALL);
        fs::write(top.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        let with_file = usage(std::slice::from_ref(&top), ALL);
        assert!(with_file >= before + (1 << 20), "{before} {with_file}");
        fs::hard_link(top.join("a/b/file"), top.join("again")).unwrap();
        assert!(usage(std::slice::from_ref(&top), ALL) < with_file + (1 << 20));
        for folder in ["a/b", "a"] {
            fs::set_permissions(top.join(folder), fs::Permissions::from_mode(0o000)).unwrap();
        }
        assert!(usage(std::slice::from_ref(&top), ALL) >= with_file);
        // As they were.
        assert_eq!(
            fs::metadata(top.join("a")).unwrap().permissions().mode() & 0o7777,
            0
        );
        fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(
            fs::metadata(top.join("a/b")).unwrap().permissions().mode() & 0o7777,
            0
        );
        crate::remove::remove_tree(&top).unwrap();
    }

    /// What leads out of a folder, or waits for whoever opens it.
    #[test]
    fn nothing_outside_of_a_folder_is_counted_or_touched() {
        let place = tempfile::tempdir().unwrap();
        let (top, outside) = (place.path().join("top"), place.path().join("outside"));
        fs::create_dir_all(top.join("in/it")).unwrap();
        fs::create_dir_all(outside.join("in/it")).unwrap();
        fs::write(outside.join("in/it/file"), vec![1; 8 << 20]).unwrap();
        let hide = |mode| fs::set_permissions(outside.join("in"), fs::Permissions::from_mode(mode)).unwrap();
        let magic = format!("/proc/self/root{}", outside.display());
        let links = [
            outside.to_str().unwrap(),
            "../outside",
            "../outside/in/it/file",
            &magic,
            "/proc/self/cwd",
        ];
        for (number, target) in links.iter().enumerate() {
            symlink(target, top.join(format!("link-{number}"))).unwrap();
        }
        for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
            mknodat(CWD, top.join(name), kind, Mode::RWXU, 0).unwrap();
        }
        // What no ordinary user may make.
        let null = rustix::fs::makedev(1, 3);
        let _may_be_denied = mknodat(CWD, top.join("null"), FileType::CharacterDevice, Mode::RWXU, null);
        hide(0o000);
        // A folder that is a link every other moment.
        let (folder, link) = (top.join("in"), top.join("swapped"));
        symlink("../outside/in", &link).unwrap();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let swaps = std::thread::spawn(move || {
            let mut count = 0u32;
            while ends.try_recv() == Err(TryRecvError::Empty) {
                renameat_with(CWD, &folder, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                count += 1;
            }
            count
        });
        let opened = File::open(&top).unwrap();
        for _ in 0..2000 {
            let tops = [top.clone(), top.join("in"), top.join("link-0"), top.join("fifo")];
            assert!(usage(&tops, ALL) < 1 << 20);
            assert!(usage_below(&opened, 0, ALL).0 < 1 << 20);
        }
        drop(end);
        assert!(swaps.join().unwrap() > 0);
        assert_eq!(
            fs::metadata(outside.join("in")).unwrap().permissions().mode() & 0o7777,
            0
        );
        hide(0o700);
    }

    #[test]
    fn a_folder_in_another_file_system_is_not_looked_into_from_outside() {
        // Mounted on every machine, on a folder of another one.
        let proc = File::open("/proc").unwrap();
        let mut count = Count {
            device: Some(u64::MAX),
            ..Count::default()
        };
        let entries = Dir::new(proc).unwrap();
        count.below(Open { entries, lent: None }, ALL);
        assert!(count.entries > 0);
        assert_eq!(count.bytes, 0);
    }

    #[test]
    fn entries_without_content_count_as_well() {
        let place = tempfile::tempdir().unwrap();
        for number in 0..100 {
            fs::write(place.path().join(number.to_string()), b"").unwrap();
        }
        assert!(usage(&[place.path().to_path_buf()], ALL) >= 100 * DISK_ENTRY_BYTES);
    }

    #[test]
    fn what_is_too_deep_to_see_is_too_much() {
        let place = tempfile::tempdir().unwrap();
        let deep = (0..DISK_DEPTH + 1).fold(place.path().to_path_buf(), |path, _| path.join("d"));
        fs::create_dir_all(&deep).unwrap();
        assert_eq!(usage(&[place.path().to_path_buf()], ALL - 1), u64::MAX);
    }

    #[test]
    fn a_disk_with_little_left_is_full() {
        assert!(!has_little(FULL_BYTES, Some(FULL_FILES)) && !has_little(FULL_BYTES, None));
        assert!(has_little(FULL_BYTES - 1, None) && has_little(u64::MAX, Some(FULL_FILES - 1)));
        assert!(!is_full(Path::new("/nowhere/at/all")));
    }

    #[test]
    fn nothing_there_is_nothing() {
        assert_eq!(usage(&["/nowhere/at/all".into()], ALL), 0);
    }
}
