//! One upstream cache: over HTTP, or in a folder of this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{OnceCell, Semaphore};
use tvix_node_builder::{Cause, Client};
use tvix_node_coordinator::Source;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::narinfo::{MAX_NARINFO_SIZE, NarInfo, StoreDir};
use tvix_node_protocol::nix::nixbase32;
use tvix_node_protocol::nix::store_path::STORE_DIR;
use tvix_node_store::{CacheError, FolderCache};
use url::Url;

use super::limits::{
    ANSWER_PATIENCE, CACHE_INFO_BYTES, QUESTIONS, REMEMBER_ABSENT, REMEMBER_THERE, REMEMBERED, SKIPPED,
    SKIPPED_MOST,
};

/// Why a cache did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Not a URL of a cache.
    #[error("'{url}' is no binary cache that can be used: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// It cannot be reached, or does not answer as a cache does.
    #[error("{cache}: {reason}")]
    Unusable {
        /// Which.
        cache: String,
        /// Why.
        reason: String,
    },
    /// What it says of a path cannot be used.
    #[error("what {cache} says of {path} is refused: {reason}")]
    Answer {
        /// Which.
        cache: String,
        /// Of what.
        path: StorePath,
        /// Why.
        reason: String,
    },
    /// The folder.
    #[error(transparent)]
    Folder(#[from] CacheError),
}

/// Where a cache is.
#[derive(Debug)]
enum Place {
    /// The URL without the slash at its end.
    Http(Url),
    Folder(PathBuf),
}

/// One upstream cache.
pub struct Upstream {
    url: String,
    place: Place,
    standing: Mutex<Standing>,
    known: Mutex<HashMap<StorePath, (Known, Instant)>>,
    /// What it says of itself has been looked at.
    checked: OnceCell<()>,
    questions: Semaphore,
    paths: AtomicU64,
    bytes: AtomicU64,
}

/// What a cache has said of a path.
#[derive(Debug, Clone)]
enum Known {
    There(Box<NarInfo>),
    Absent,
    /// It cannot be used, and why.
    Refused(String),
}

#[derive(Debug, Default)]
struct Standing {
    failures: u32,
    skipped_until: Option<Instant>,
    reason: String,
}

/// How a cache does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its URL.
    pub url: String,
    /// Paths that came from it.
    pub paths: u64,
    /// Bytes of their archives.
    pub bytes: u64,
    /// Where it is not asked at the moment: for how many seconds more, and why.
    pub skipped: Option<(u64, String)>,
}

impl Upstream {
    /// The cache with this URL. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`UpstreamError::Url`]
    pub fn new(text: &str) -> Result<Self, UpstreamError> {
        let wrong = |reason: &str| UpstreamError::Url {
            url: text.to_owned(),
            reason: reason.to_owned(),
        };
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("what stands after '?' or '#' is not supported"));
        }
        let (url, place) = match url.scheme() {
            "http" | "https" if url.host().is_some() => {
                let text = text.trim_end_matches('/').to_owned();
                (text, Place::Http(url))
            }
            "file" => {
                let path = url
                    .to_file_path()
                    .map_err(|()| wrong("a 'file' URL needs an absolute path and no host"))?;
                (format!("file://{}", path.display()), Place::Folder(path))
            }
            _ => return Err(wrong("only http, https and file are supported")),
        };
        Ok(Self {
            url,
            place,
            standing: Mutex::default(),
            known: Mutex::default(),
            checked: OnceCell::new(),
            questions: Semaphore::new(QUESTIONS),
            paths: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        })
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// As the coordinator knows it.
    pub fn source(&self) -> Source {
        match &self.place {
            Place::Http(_) => Source::Cache(self.url.clone()),
            Place::Folder(folder) => Source::Folder(folder.to_string_lossy().into_owned()),
        }
    }

    /// Whether it is asked at the moment.
    pub fn is_asked(&self) -> bool {
        let now = Instant::now();
        lock(&self.standing)
            .skipped_until
            .is_none_or(|until| until <= now)
    }

    /// How it does.
    pub fn report(&self) -> Report {
        let (now, standing) = (Instant::now(), lock(&self.standing));
        let left = standing
            .skipped_until
            .map(|until| until.saturating_duration_since(now));
        Report {
            url: self.url.clone(),
            paths: self.paths.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            skipped: left
                .filter(|left| !left.is_zero())
                .map(|left| (left.as_secs() + 1, standing.reason.clone())),
        }
    }

    /// A path of so many bytes came from it.
    pub fn brought(&self, bytes: u64) {
        self.paths.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.did_well();
    }

    /// It does not have a path that it spoke of, or not as it said.
    pub fn forget(&self, path: &StorePath) {
        lock(&self.known).remove(path);
    }

    fn did_well(&self) {
        *lock(&self.standing) = Standing::default();
    }

    /// It is left alone for a while.
    pub fn failed(&self, reason: &dyn std::fmt::Display) {
        let mut standing = lock(&self.standing);
        let now = Instant::now();
        if standing.skipped_until.is_some_and(|until| until > now) {
            // Questions that were open when it was found out.
            return;
        }
        let doubled = SKIPPED.saturating_mul(1 << standing.failures.min(8));
        let skipped = doubled.min(SKIPPED_MOST);
        standing.failures = standing.failures.saturating_add(1);
        standing.skipped_until = Some(now + skipped);
        standing.reason = reason.to_string();
        tracing::warn!(cache = self.url, %reason, seconds = skipped.as_secs(), "a cache is skipped for a while");
    }

    /// What it says of a path. Not believed by itself.
    ///
    /// # Errors
    /// See [`UpstreamError`]. One that cannot be used is left alone for a while.
    pub async fn info(&self, client: &Client, path: &StorePath) -> Result<Option<NarInfo>, UpstreamError> {
        match self.remembered(path) {
            Some(Known::There(info)) => return Ok(Some(*info)),
            Some(Known::Absent) => return Ok(None),
            Some(Known::Refused(reason)) => return Err(self.refused(path, reason)),
            None => {}
        }
        let Ok(_place) = self.questions.acquire().await else {
            return Ok(None);
        };
        // Those that wait behind one that found out need not.
        if !self.is_asked() {
            return Ok(None);
        }
        let asked = async {
            self.checked.get_or_try_init(|| self.check_once(client)).await?;
            self.ask(client, path).await
        };
        let answer = tokio::time::timeout(ANSWER_PATIENCE, asked).await;
        let answer = answer.unwrap_or_else(|_| {
            let seconds = ANSWER_PATIENCE.as_secs();
            Err(self.unusable(format!("it did not answer within {seconds} seconds")))
        });
        match answer {
            Ok(info) => {
                self.did_well();
                self.remember(
                    path,
                    info.clone()
                        .map_or(Known::Absent, |info| Known::There(Box::new(info))),
                );
                Ok(info)
            }
            Err(UpstreamError::Answer { reason, .. }) => {
                // It is there, and wrong about this path alone.
                self.remember(path, Known::Refused(reason.clone()));
                Err(self.refused(path, reason))
            }
            Err(error) => {
                self.failed(&error);
                Err(error)
            }
        }
    }

    fn remembered(&self, path: &StorePath) -> Option<Known> {
        let known = lock(&self.known);
        let (said, since) = known.get(path)?;
        let lasts = match said {
            Known::There(_) => REMEMBER_THERE,
            Known::Absent | Known::Refused(_) => REMEMBER_ABSENT,
        };
        (since.elapsed() < lasts).then(|| said.clone())
    }

    fn remember(&self, path: &StorePath, said: Known) {
        let mut known = lock(&self.known);
        if known.len() >= REMEMBERED {
            known.retain(|_, (_, since)| since.elapsed() < REMEMBER_ABSENT);
            if known.len() >= REMEMBERED {
                known.clear();
            }
        }
        known.insert(path.clone(), (said, Instant::now()));
    }

    fn refused(&self, path: &StorePath, reason: String) -> UpstreamError {
        UpstreamError::Answer {
            cache: self.url.clone(),
            path: path.clone(),
            reason,
        }
    }

    fn unusable(&self, reason: impl Into<String>) -> UpstreamError {
        UpstreamError::Unusable {
            cache: self.url.clone(),
            reason: reason.into(),
        }
    }

    fn below(&self, base: &Url, name: &str) -> Result<Url, UpstreamError> {
        let text = format!("{}/{name}", base.as_str().trim_end_matches('/'));
        Url::parse(&text).map_err(|error| self.unusable(format!("'{text}' is no URL: {error}")))
    }

    async fn get(&self, client: &Client, url: &Url, most: usize) -> Result<Option<Vec<u8>>, UpstreamError> {
        client
            .get(url, most)
            .await
            .map_err(|cause| self.unusable(in_words(cause)))
    }

    async fn check_once(&self, client: &Client) -> Result<(), UpstreamError> {
        if !self.is_asked() {
            // Whoever was first has found it out.
            return Err(self.unusable("it is skipped for a while"));
        }
        self.check(client).await.inspect_err(|error| self.failed(error))
    }

    /// Whether it is a cache, and one of the right store directory.
    async fn check(&self, client: &Client) -> Result<(), UpstreamError> {
        let Place::Http(base) = &self.place else {
            // Opening a folder looks at it each time.
            return Ok(());
        };
        let url = self.below(base, "nix-cache-info")?;
        let Some(bytes) = self.get(client, &url, CACHE_INFO_BYTES).await? else {
            return Err(self.unusable("it is no binary cache: it has no 'nix-cache-info'"));
        };
        let text = String::from_utf8_lossy(&bytes);
        let found = text.lines().find_map(|line| line.strip_prefix("StoreDir:"));
        match found.map(str::trim) {
            None | Some(STORE_DIR) => Ok(()),
            Some(other) => Err(self.unusable(format!(
                "it is a cache for the store directory '{other}', not for {STORE_DIR}"
            ))),
        }
    }

    async fn ask(&self, client: &Client, path: &StorePath) -> Result<Option<NarInfo>, UpstreamError> {
        let base = match &self.place {
            Place::Http(base) => base,
            Place::Folder(folder) => {
                let (folder, wanted) = (folder.clone(), path.clone());
                let asked = tokio::task::spawn_blocking(move || FolderCache::open(&folder)?.info(&wanted));
                let asked = asked.await.map_err(|error| self.unusable(error.to_string()))?;
                return asked.map_err(|error| match error {
                    CacheError::NarInfo { .. } | CacheError::OtherPath { .. } => {
                        self.refused(path, error.to_string())
                    }
                    error => error.into(),
                });
            }
        };
        let refused = |reason: String| self.refused(path, reason);
        let name = format!("{}.narinfo", nixbase32::encode(path.digest()));
        let url = self.below(base, &name)?;
        let Some(bytes) = self.get(client, &url, MAX_NARINFO_SIZE).await? else {
            return Ok(None);
        };
        let info = NarInfo::parse_in(&StoreDir::default(), &bytes);
        let info = info.map_err(|error| refused(error.to_string()))?;
        if info.store_path() != path {
            return Err(refused(format!("it speaks of {}", info.store_path())));
        }
        Ok(Some(info))
    }

    /// The file that has the archive of a path, downloaded into `target` where it is elsewhere. What is in
    /// it is not checked.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn archive(
        &self,
        client: &Client,
        info: &NarInfo,
        most: u64,
        target: &Path,
    ) -> Result<PathBuf, UpstreamError> {
        let base = match &self.place {
            Place::Http(base) => base,
            Place::Folder(folder) => return Ok(FolderCache::open(folder)?.archive_file(info)?),
        };
        if info.url().contains("://") || info.url().starts_with('/') {
            return Err(UpstreamError::Answer {
                cache: self.url.clone(),
                path: info.store_path().clone(),
                reason: format!("its archive is '{}', which is not in the cache", info.url()),
            });
        }
        let url = self.below(base, info.url())?;
        let tell = |text: String| {
            tracing::debug!(text, "a download is tried again");
            std::future::ready(())
        };
        let downloaded = client.download(&url, target, most, None, &tell).await;
        downloaded.map_err(|cause| self.unusable(in_words(cause)))?;
        Ok(target.to_owned())
    }
}

fn in_words(cause: Cause) -> String {
    match cause {
        Cause::DiskTooLarge(most) => format!("a file has more than the {most} bytes that it may have"),
        other => other.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is consistent at every instant.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A cache that says these of itself and of any path.
    fn server(of_itself: String, of_paths: String) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = BufReader::new(&stream)
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|line| !line.is_empty());
                let Some(asked) = head.next() else { continue };
                head.for_each(drop);
                let said = match asked.contains(".narinfo") {
                    true => &of_paths,
                    false => &of_itself,
                };
                // Whoever has read enough goes away.
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    said.len()
                );
                let _goes_away = stream.write_all(&[answer.as_bytes(), said.as_bytes()].concat());
            }
        });
        Upstream::new(&url).unwrap()
    }

    #[test]
    fn so_many_answers_are_remembered_and_no_more() {
        let cache = Upstream::new("https://cache.example.org").unwrap();
        let path = |number: usize| StorePath::from_parts([7; 20], &number.to_string()).unwrap();
        for number in 0..REMEMBERED {
            cache.remember(&path(number), Known::Absent);
        }
        assert_eq!(lock(&cache.known).len(), REMEMBERED);
        cache.remember(&path(REMEMBERED), Known::Absent);
        assert!(lock(&cache.known).len() <= REMEMBERED);
        assert!(cache.remembered(&path(REMEMBERED)).is_some(), "what is new is");
    }

    fn filled(said: &str, bytes: usize) -> String {
        let line = "Filling: \n".len();
        format!("{said}Filling: {}\n", "x".repeat(bytes - said.len() - line))
    }

    #[tokio::test]
    async fn a_cache_says_so_many_bytes_of_itself_and_of_a_path_and_no_more() {
        let path = StorePath::from_parts([7; 20], "said").unwrap();
        let of_itself = format!("StoreDir: {STORE_DIR}\n");
        let of_path = format!(
            "StorePath: {path}\nURL: nar/x\nCompression: none\nNarHash: sha256:{}\nNarSize: 120\nReferences: \n",
            "0".repeat(52)
        );
        let client = Client::for_caches(["127.0.0.0/8".parse().unwrap()].into()).unwrap();
        let ask = async |of_itself: usize, of_path: usize, said: (&str, &str)| {
            let cache = server(filled(said.0, of_itself), filled(said.1, of_path));
            cache
                .info(&client, &path)
                .await
                .map_err(|error| error.to_string())
        };
        let said = (of_itself.as_str(), of_path.as_str());
        let info = ask(CACHE_INFO_BYTES, MAX_NARINFO_SIZE, said)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(info.store_path(), &path);
        for (of_itself, of_path, most) in [
            (CACHE_INFO_BYTES + 1, MAX_NARINFO_SIZE, CACHE_INFO_BYTES),
            (CACHE_INFO_BYTES, MAX_NARINFO_SIZE + 1, MAX_NARINFO_SIZE),
        ] {
            let error = ask(of_itself, of_path, said).await.unwrap_err();
            assert!(error.contains(&format!("more than {most} bytes")), "{error}");
        }
    }
}
