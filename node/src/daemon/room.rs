//! Room on the home's disk for what arrives from binary caches and from the team.
//!
//! Everything that arrives is promised its bytes before the first one comes. What is on its way at once would otherwise
//! see the same free bytes, and fill the disk together. Who finds too little while others are on their way waits for
//! them, in order; who finds too little alone is refused.
//!
//! What others say of what they want to have here, inputs of their builds and what they push, has half of the room
//! together and waits in a line of its own: somebody who says much and sends little holds up nobody else.

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
    promised: watch::Sender<Promised>,
    /// Held by the first of those who wait, for the owner and for others.
    first: [Mutex<()>; 2],
}

/// For whom something arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// For the owner, who asked for it.
    Owner,
    /// For another member, who says how large it is.
    Another,
}

/// Bytes that are promised.
#[derive(Debug, Clone, Copy, Default)]
struct Promised {
    /// Together.
    all: u64,
    /// Of these, for others.
    others: u64,
}

/// Room for something that arrives, until it is dropped: what has arrived is then seen on the disk itself.
pub struct Promise {
    room: Arc<Room>,
    whom: Whom,
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
            promised: watch::Sender::new(Promised::default()),
            first: Default::default(),
        })
    }

    /// Room for so many bytes, as soon as there is. Whoever waits here holds no promise: others may wait for that one.
    ///
    /// # Errors
    /// See [`NoRoom`].
    pub async fn promise(self: &Arc<Self>, whom: Whom, bytes: u64) -> Result<Promise, NoRoom> {
        let [owner, another] = &self.first;
        let line = match whom {
            Whom::Owner => owner,
            Whom::Another => another,
        };
        // What is large would never find enough if what is small went past it.
        let _first = line.lock().await;
        let mut changes = self.promised.subscribe();
        loop {
            changes.mark_unchanged();
            match self.ask(whom, bytes) {
                Answer::Promised => return Ok(self.promised(whom, bytes)),
                Answer::Refused(why) => return Err(why),
                // The sender is this ledger's.
                Answer::Later => drop(changes.changed().await),
            }
        }
    }

    /// Room for so many bytes, if there is some now.
    pub fn promise_now(self: &Arc<Self>, whom: Whom, bytes: u64) -> Option<Promise> {
        match self.ask(whom, bytes) {
            Answer::Promised => Some(self.promised(whom, bytes)),
            Answer::Later | Answer::Refused(_) => None,
        }
    }

    fn promised(self: &Arc<Self>, whom: Whom, bytes: u64) -> Promise {
        let room = Arc::clone(self);
        Promise { room, whom, bytes }
    }

    /// Looks and writes down in one step. What has come of what is promised counts twice until all of it has come: at
    /// worst somebody waits who need not.
    fn ask(&self, whom: Whom, bytes: u64) -> Answer {
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
            let room = free.saturating_sub(LEFT_FREE);
            // What is on its way may leave again, as packed archives do.
            let ever = room.saturating_add(promised.all);
            let (others, most, ever) = match whom {
                Whom::Owner => (0, room, ever),
                Whom::Another => (promised.others, room / 2, ever / 2),
            };
            let fits = bytes.saturating_add(promised.all) <= room && bytes.saturating_add(others) <= most;
            if fits {
                promised.add(whom, bytes);
                answer = Answer::Promised;
            } else if promised.all == 0 || bytes > ever {
                let folder = self.folder.clone();
                answer = Answer::Refused(NoRoom::Full { folder, free, bytes });
            }
            fits
        });
        answer
    }
}

impl Promised {
    fn add(&mut self, whom: Whom, bytes: u64) {
        self.all += bytes;
        if whom == Whom::Another {
            self.others += bytes;
        }
    }

    fn take(&mut self, whom: Whom, bytes: u64) {
        self.all -= bytes;
        if whom == Whom::Another {
            self.others -= bytes;
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let (whom, bytes) = (self.whom, self.bytes);
        self.room
            .promised
            .send_modify(|promised| promised.take(whom, bytes));
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
        let first = room.promise(Whom::Owner, 60).await.unwrap();
        assert!(room.promise_now(Whom::Owner, 41).is_none());
        let second = room.promise(Whom::Owner, 40).await.unwrap();
        let mut third = Box::pin(room.promise(Whom::Owner, 50));
        assert!(third.as_mut().now_or_never().is_none(), "it waits");
        // Who comes later does not go past it, even where there would be enough.
        drop(second);
        let mut fourth = Box::pin(room.promise(Whom::Owner, 10));
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        drop(first);
        let third = third.await.unwrap();
        let fourth = fourth.await.unwrap();
        assert!(room.promise_now(Whom::Owner, 41).is_none() && room.promise_now(Whom::Owner, 40).is_some());
        drop((third, fourth));
        assert!(room.promise_now(Whom::Owner, 100).is_some());
    }

    #[tokio::test]
    async fn who_does_not_fit_alone_is_refused() {
        let room = room(100);
        for bytes in [101, u64::MAX] {
            let error = room.promise(Whom::Owner, bytes).await.err().unwrap().to_string();
            assert!(
                error.contains("'/there'") && error.contains("'tvix-node store gc' makes room"),
                "{error}"
            );
        }
        // Also while somebody is on his way, whose bytes may be free again later: it would never fit.
        let first = room.promise(Whom::Owner, 1).await.unwrap();
        assert!(matches!(
            room.promise(Whom::Owner, 102).await,
            Err(NoRoom::Full { bytes: 102, .. })
        ));
        assert!(room.promise(Whom::Owner, 101).now_or_never().is_none());
        drop(first);
        let unknown = Room::with("/x".into(), Box::new(|_| Err(io::ErrorKind::NotFound.into())));
        assert!(matches!(
            unknown.promise(Whom::Owner, 1).await,
            Err(NoRoom::Unknown { .. })
        ));
    }

    #[tokio::test]
    async fn who_says_much_and_sends_little_holds_up_nobody_but_his_like() {
        let room = room(100);
        // More than half is never for others.
        assert!(room.promise(Whom::Another, 51).await.is_err());
        let hoarded = room.promise(Whom::Another, 50).await.unwrap();
        let mut another = Box::pin(room.promise(Whom::Another, 1));
        assert!(another.as_mut().now_or_never().is_none());
        let owner = room.promise(Whom::Owner, 50).await.unwrap();
        assert!(room.promise_now(Whom::Owner, 1).is_none());
        drop(owner);
        assert!(another.as_mut().now_or_never().is_none());
        drop(hoarded);
        drop(another.await.unwrap());
        assert!(room.promise_now(Whom::Owner, 100).is_some());
    }

    #[test]
    fn a_real_disk_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::of(folder.path().to_owned());
        assert!(
            room.promise_now(Whom::Owner, 0).is_some() && room.promise_now(Whom::Owner, u64::MAX).is_none()
        );
    }
}
