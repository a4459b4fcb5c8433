//! Acts with file systems in memory that have no bound of their own, and therefore do not tell what they have.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::detach::{SOME, enter_namespaces, folder, mounted_at};
use crate::flood::{MIB, PARTS, forever};
use crate::{Done, raw};

/// Where it is mounted.
const PLACE: &str = "/tmp/unbound";

/// Less than a test allows, and more than half of it.
const MODEST: usize = 36;

/// More than any of the tests allows where each counts a kibibyte.
const NAMES: usize = 100_000;

/// Has too much there.
pub fn flood(what: &str) -> Done {
    let place = unbound()?;
    match what {
        // Mounted apart, the whole nowhere.
        "parts" => {
            for part in parts(PARTS / SOME)? {
                fill(&part, SOME)?;
            }
            forever()
        }
        "names" => {
            let file = place.join("file");
            File::create(&file)?;
            for number in 0..NAMES {
                fs::hard_link(&file, place.join(number.to_string()))?;
            }
            forever()
        }
        // As much as lies there.
        "mapped-without-a-name" => {
            fill(&place, SOME)?;
            map_without_names(&place)?;
            forever()
        }
        "mapped-out-of-sight" => {
            let [seen, unseen] = seen_and_unseen()?;
            fs::write(seen.join("small"), "x")?;
            for number in 0..PARTS {
                map(&new(&unseen.join(number.to_string()))?, MIB)?;
            }
            let_go(&unseen)
        }
        "open-out-of-sight" => {
            let [seen, unseen] = seen_and_unseen()?;
            fs::write(seen.join("small"), "x")?;
            fill(&unseen, PARTS)?;
            let names = (0..PARTS).map(|number| File::open(unseen.join(number.to_string())));
            let _held: Vec<File> = names.collect::<Result<_, _>>()?;
            let_go(&unseen)
        }
        other => Err(format!("cannot flood one by {other}").into()),
    }
}

/// Has something there that looks like more than it is, for several looks.
pub fn modest(what: &str, out: &str) -> Done {
    let place = unbound()?;
    let mut held: Vec<OwnedFd> = Vec::new();
    match what {
        "mounted-several-times" => {
            fill(&place, MODEST)?;
            for again in places(3)? {
                mount_bind(&place, &again)?;
                held.push(folder(&again)?);
            }
            fs::create_dir_all(place.join("a/b"))?;
            held.push(folder(&place.join("a/b"))?);
        }
        "several-names" => {
            let file = place.join("file");
            let mut opened = File::create(&file)?;
            // Never much of it in memory of the process's own.
            for _ in 0..MODEST {
                opened.write_all(&[b'x'; MIB])?;
            }
            for name in ["again", "and-again"] {
                fs::hard_link(&file, place.join(name))?;
            }
        }
        "mapped-with-a-name" => {
            map(&new(&place.join("file"))?, MODEST * MIB)?;
            if raw::fork()? == 0 {
                forever()
            }
        }
        // Without a name, open as well.
        "mapped-and-open" => {
            fs::write(place.join("small"), "x")?;
            let file = new(&place.join("file"))?;
            // Before anything is in it: it must not be seen both ways in one look.
            fs::remove_file(place.join("file"))?;
            map(&file, MODEST * MIB)?;
            held.push(file.into());
        }
        other => return Err(format!("cannot have {other}").into()),
    }
    std::thread::sleep(Duration::from_secs(2));
    fs::write(out, "x")?;
    Ok(())
}

/// A new one, in namespaces of its own.
fn unbound() -> Result<PathBuf, Box<dyn std::error::Error>> {
    enter_namespaces(libc::CLONE_NEWNS)?;
    mounted_at(PLACE.into(), "size=0")
}

/// So many folders of the build's own.
fn places(count: usize) -> std::io::Result<Vec<PathBuf>> {
    let places: Vec<PathBuf> = (0..count)
        .map(|number| format!("/tmp/part-{number}").into())
        .collect();
    places.iter().try_for_each(fs::create_dir)?;
    Ok(places)
}

/// So many folders of it, mounted without the rest.
fn parts(count: usize) -> std::io::Result<Vec<PathBuf>> {
    let places = places(count)?;
    for (number, place) in places.iter().enumerate() {
        let part = Path::new(PLACE).join(format!("part-{number}"));
        fs::create_dir(&part)?;
        mount_bind(&part, place)?;
    }
    unmount(PLACE, UnmountFlags::DETACH)?;
    Ok(places)
}

/// Two of them, of which the second is yet to be let go.
fn seen_and_unseen() -> Result<[PathBuf; 2], Box<dyn std::error::Error>> {
    parts(2)?.try_into().map_err(|_| "two parts".into())
}

/// From then on no folder leads there.
fn let_go(unseen: &Path) -> Done {
    unmount(unseen, UnmountFlags::DETACH)?;
    println!("let go");
    forever()
}

fn fill(place: &Path, parts: usize) -> Done {
    for number in 0..parts {
        fs::write(place.join(number.to_string()), vec![b'x'; MIB])?;
    }
    println!("filled {parts}");
    Ok(())
}

fn new(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).create_new(true).open(path)
}

/// Maps so much of a file, and fills it.
fn map(file: &File, bytes: usize) -> std::io::Result<()> {
    file.set_len(bytes as u64)?;
    raw::map_written(file.as_fd(), bytes)?.fill(1);
    Ok(())
}

/// Files that are mapped and nothing else.
fn map_without_names(place: &Path) -> Done {
    for number in 0..SOME {
        let path = place.join(format!("mapped-{number}"));
        map(&new(&path)?, MIB)?;
        fs::remove_file(path)?;
    }
    println!("mapped {SOME}");
    Ok(())
}
