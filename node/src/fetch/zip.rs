//! Zip files to folders.

use std::io::{Read, Seek};
use std::path::Path;

use zip::extra_fields::ExtraField;
use zip::read::ZipFile;
use zip::{DateTime, ZipArchive};

use super::archive::Unpacked;
use super::growing::{EntryPath, Growing};
use super::limits::{LINK_BYTES, MOST_BYTES, MOST_ENTRIES};

/// Unpacks a zip file into `target`, which must not exist.
///
/// # Errors
/// In words: what is wrong with the archive, or with the disk.
pub(super) fn extract(reader: impl Read + Seek, target: &Path) -> Result<Unpacked, String> {
    let wrong = |error: zip::result::ZipError| format!("not a valid zip file: {error}");
    let mut archive = ZipArchive::new(reader).map_err(wrong)?;
    if archive.len() > MOST_ENTRIES {
        return Err(format!("it has more than {MOST_ENTRIES} entries"));
    }
    let mut growing = Growing::new(target)?;
    let (mut last_modified, mut left) = (0, MOST_BYTES);
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(wrong)?;
        last_modified = last_modified.max(modified(&entry));
        let Some(path) = EntryPath::of(entry.name_raw())? else {
            continue;
        };
        if entry.is_dir() {
            growing.folder(&path)?;
        } else if entry.is_symlink() {
            let mut to = Vec::new();
            let mut content = Read::by_ref(&mut entry).take(LINK_BYTES + 1);
            content
                .read_to_end(&mut to)
                .map_err(|error| format!("'{path}': {error}"))?;
            if to.len() as u64 > LINK_BYTES {
                return Err(format!("the link '{path}' has more than {LINK_BYTES} bytes"));
            }
            growing.link(&path, &to)?;
        } else {
            let executable = entry.unix_mode().is_some_and(|mode| mode & 0o100 != 0);
            // What the archive says of sizes is not believed: what comes is counted.
            let mut content = Read::by_ref(&mut entry).take(left);
            growing.file(&path, executable, &mut content)?;
            left = content.limit();
            if left == 0 {
                return Err("it unpacks to more than allowed".to_owned());
            }
        }
    }
    let root = growing.root().ok_or("it is empty")?;
    Ok(Unpacked { root, last_modified })
}

/// When an entry was changed last, in seconds since 1970: as its extended time stamp says, else as its date in
/// the calendar says, which has no time zone and is taken as UTC. 0 where nothing says.
fn modified(entry: &ZipFile<'_, impl Read>) -> u64 {
    let stamp = entry.extra_data_fields().find_map(|field| match field {
        ExtraField::ExtendedTimestamp(stamp) => stamp.mod_time(),
        _ => None,
    });
    match stamp {
        Some(stamp) => stamp.into(),
        None => entry.last_modified().map_or(0, seconds),
    }
}

/// Seconds from 1970 to a date of the calendar, which in zip files is one from 1980 on.
fn seconds(date: DateTime) -> u64 {
    let (year, month, day) = (
        u64::from(date.year()),
        u64::from(date.month()),
        u64::from(date.day()),
    );
    // Years are counted from March on, so that the leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let days_before_month = (153 * ((month + 9) % 12) + 2) / 5;
    // To 1 March of year 0 there are 719,468 days from 1970 back.
    let days = 365 * year + year / 4 - year / 100 + year / 400 + days_before_month + day - 1 - 719_468;
    let (hour, minute, second) = (
        u64::from(date.hour()),
        u64::from(date.minute()),
        u64::from(date.second()),
    );
    ((days * 24 + hour) * 60 + minute) * 60 + second
}

#[cfg(test)]
#[path = "zip_tests.rs"]
mod tests;
