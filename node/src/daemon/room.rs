//! Room on the home's disk for what arrives from binary caches and from the team.
//!
//! Everything that arrives is promised its bytes before the first one comes. What is on its way at once would otherwise
//! see the same free bytes, and fill the disk together. Who finds too little while others are on their way waits for
//! them, in order; who finds too little alone is refused.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Mutex, watch};

use super::limits::LEFT_FREE;

/// There is no room, and nothing on its way that would leave any.
#[derive(Debug, thiserror::Error)]
pub enum NoRoom {
    /// The disk is too full.
    #[error(
        "the disk of '{}' has {free} bytes free, which is not enough for the {bytes} that an archive and what is unpacked from \
         it may have, and {LEFT_FREE} that are left free; 'tvix-node store gc' makes room", .folder.display()
    )]
    Full {
        /// Where it was to be.
        folder: PathBuf,
        /// Bytes that are free there.
        free: u64,
        /// Bytes that it may have.
        bytes: u64,
    },
    /// It cannot be told.
    #[error("it cannot be told how much room '{}' has: {source}", .folder.display())]
    Unknown {
        /// Where it was to be.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The bytes of a file system that its user may still write.
type Free = Box<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// The ledger of what is promised. See the [module](self).
pub struct Room {
    folder: PathBuf,
    free: Free,
    /// Bytes.
    promised: watch::Sender<u64>,
    /// Held by the first of those who wait.
    first: Mutex<()>,
}

/// Room for something that arrives, until it is dropped: what has arrived is then seen on the disk itself.
pub struct Promise {
    room: Arc<Room>,
    bytes: u64,
}

/// What the disk says at the moment.
enum Answer {
    Promised,
    Later,
    Refused(NoRoom),
}

impl Room {
    /// Room on the file system of a folder.
    pub fn of(folder: PathBuf) -> Arc<Self> {
        Self::with(folder, Box::new(free))
    }

    fn with(folder: PathBuf, free: Free) -> Arc<Self> {
        Arc::new(Self {
            folder,
            free,
            promised: watch::Sender::new(0),
            first: Mutex::default(),
        })
    }

    /// Room for so many bytes, as soon as there is. Whoever waits here holds no promise: others may wait for that one.
    ///
    /// # Errors
    /// See [`NoRoom`].
    pub async fn promise(self: &Arc<Self>, bytes: u64) -> Result<Promise, NoRoom> {
        // What is large would never find enough if what is small went past it.
        let _first = self.first.lock().await;
        let mut changes = self.promised.subscribe();
        loop {
            changes.mark_unchanged();
            match self.ask(bytes) {
                Answer::Promised => return Ok(self.promised(bytes)),
                Answer::Refused(why) => return Err(why),
                // The sender is this ledger's.
                Answer::Later => drop(changes.changed().await),
            }
        }
    }

    /// Room for so many bytes, if there is some now.
    pub fn promise_now(self: &Arc<Self>, bytes: u64) -> Option<Promise> {
        match self.ask(bytes) {
            Answer::Promised => Some(self.promised(bytes)),
            Answer::Later | Answer::Refused(_) => None,
        }
    }

    fn promised(self: &Arc<Self>, bytes: u64) -> Promise {
        let room = Arc::clone(self);
        Promise { room, bytes }
    }

    /// Looks and writes down in one step. What has come of what is promised counts twice until all of it has come: at
    /// worst somebody waits who need not.
    fn ask(&self, bytes: u64) -> Answer {
        let mut answer = Answer::Later;
        self.promised.send_if_modified(|promised| {
            let free = match (self.free)(&self.folder) {
                Ok(free) => free,
                Err(source) => {
                    let folder = self.folder.clone();
                    answer = Answer::Refused(NoRoom::Unknown { folder, source });
                    return false;
                }
            };
            let wanted = bytes.saturating_add(*promised).saturating_add(LEFT_FREE);
            if wanted <= free {
                *promised += bytes;
                answer = Answer::Promised;
                return true;
            }
            if *promised == 0 {
                let folder = self.folder.clone();
                answer = Answer::Refused(NoRoom::Full { folder, free, bytes });
            }
            false
        });
        answer
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.room.promised.send_modify(|promised| *promised -= self.bytes);
    }
}

fn free(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// So many bytes beside those that are left free.
    fn room(bytes: u64) -> Arc<Room> {
        Room::with("/there".into(), Box::new(move |_| Ok(LEFT_FREE + bytes)))
    }

    #[tokio::test]
    async fn several_at_once_are_not_promised_the_same_bytes() {
        let room = room(100);
        let first = room.promise(60).await.unwrap();
        assert!(room.promise_now(41).is_none());
        let second = room.promise(40).await.unwrap();
        let mut third = Box::pin(room.promise(50));
        assert!(third.as_mut().now_or_never().is_none(), "it waits");
        // Who comes later does not go past it, even where there would be enough.
        drop(second);
        let mut fourth = Box::pin(room.promise(10));
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        drop(first);
        let third = third.await.unwrap();
        let fourth = fourth.await.unwrap();
        assert!(room.promise_now(41).is_none() && room.promise_now(40).is_some());
        drop((third, fourth));
        assert!(room.promise_now(100).is_some());
    }

    #[tokio::test]
    async fn who_does_not_fit_alone_is_refused() {
        let room = room(100);
        for bytes in [101, u64::MAX] {
            let error = room.promise(bytes).await.err().unwrap().to_string();
            assert!(
                error.contains("'/there'") && error.contains("'tvix-node store gc' makes room"),
                "{error}"
            );
        }
        // Also when who was before is through.
        let first = room.promise(1).await.unwrap();
        let mut second = Box::pin(room.promise(101));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(matches!(second.await, Err(NoRoom::Full { bytes: 101, .. })));
        let unknown = Room::with("/x".into(), Box::new(|_| Err(io::ErrorKind::NotFound.into())));
        assert!(matches!(unknown.promise(1).await, Err(NoRoom::Unknown { .. })));
    }

    #[test]
    fn a_real_disk_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::of(folder.path().to_owned());
        assert!(room.promise_now(0).is_some() && room.promise_now(u64::MAX).is_none());
    }
}
