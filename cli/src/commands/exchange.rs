//! `store add`, `export` and `import`.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;

use tvix_node::background::connect_or_start;
use tvix_node::gateway::control::{ClientError, ControlClient, LogStream, Upload};
use tvix_node::home::Home;
use tvix_node::worker::SourceTree;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildLimits;
use tvix_node_protocol::control::{
    AddSource, AddedAs, CONTROL_VERSION, OpenSession, SessionMode, StoreAnswer, StoreQuestion,
};
use tvix_node_protocol::nix::store_path::{DIGEST_LEN, MAX_NAME_LEN};
use tvix_node_protocol::path_info::PathInfo;

use super::path::store_path;
use super::{Failure, print, relations};
use crate::arguments::UsageError;
use crate::progress::clean;

/// Adds something of this machine, and prints its path.
pub async fn add(home: &Home, place: &Path, name: Option<String>) -> Result<u8, Failure> {
    // What is given is a link where the link itself is meant, as in Nix; so it is looked at, not followed.
    if let Err(error) = place.symlink_metadata() {
        let place = place.display();
        return Err(UsageError::new(format!("'{place}' cannot be added: {error}")).into());
    }
    let name = match name {
        Some(name) => name,
        None => own_name(place)?,
    };
    check_name(&name, "choose another one with --name")?;
    let tree = SourceTree::new(place.to_owned(), None);
    let info = add_archive(home, name, move |upload| match tree.write_archive(&mut *upload) {
        Err(tvix_node::worker::SourceError::Archive {
            source: tvix_node_protocol::nix::nar::NarError::Io(error),
            ..
        }) => Err(error.into()),
        written => written.map_err(Failure::from),
    })
    .await?;
    print(format!("{}\n", info.path).as_bytes())?;
    Ok(0)
}

/// What a file or folder is called, `.` and `..` included.
fn own_name(place: &Path) -> Result<String, Failure> {
    let no_name = || {
        let place = place.display();
        Failure::from(UsageError::new(format!(
            "'{place}' has no name that a store path could have: choose one with --name"
        )))
    };
    let whole = match place.file_name() {
        Some(_) => place.to_owned(),
        None => place.canonicalize().map_err(|_| no_name())?,
    };
    let name = whole.file_name().and_then(std::ffi::OsStr::to_str);
    name.map(str::to_owned).ok_or_else(no_name)
}

/// Judges the name of what is to be added before it is read. `advice`: how another one is chosen.
fn check_name(name: &str, advice: &str) -> Result<(), UsageError> {
    match StorePath::from_parts([0; DIGEST_LEN], name) {
        Ok(_) => Ok(()),
        Err(_) => Err(UsageError::new(format!(
            "{name:?} cannot be the name of a store path, which has 1 to {MAX_NAME_LEN} characters out of a-z, A-Z, 0-9 \
             and +-._?= and is neither '.' nor '..' nor begins with '.-' or '..-': {advice}"
        ))),
    }
}

/// Writes paths to standard output.
pub async fn export(home: &Home, paths: &[String], nar: bool) -> Result<u8, Failure> {
    let paths = paths
        .iter()
        .map(|path| store_path(home, path))
        .collect::<Result<Vec<_>, _>>()?;
    if io::stdout().is_terminal() {
        return Err(
            UsageError::new("an export is not for a terminal: write it to a file or into a pipe").into(),
        );
    }
    let (client, stream);
    match (nar, paths.as_slice()) {
        (true, [path]) => {
            client = connect_or_start(home).await?;
            stream = client.archive(path.clone()).await;
        }
        (true, _) => return Err(UsageError::new("an archive holds one path: name one with --nar").into()),
        (false, _) => {
            client = connect_or_start(home).await?;
            stream = client.export(paths.clone()).await;
        }
    }
    let copied = match stream {
        Ok(stream) => copy_out(stream).await,
        Err(error) => Err(error.into()),
    };
    match copied {
        Ok(()) => Ok(0),
        // An answer cannot say why it breaks off.
        Err(Failure::Client(error @ ClientError::Broken { .. })) => Err(broken_off(home, paths, error).await),
        Err(error) => Err(error),
    }
}

async fn copy_out(mut stream: LogStream) -> Result<(), Failure> {
    while let Some(chunk) = stream.chunk().await? {
        print(&chunk)?;
    }
    Ok(())
}

/// Why an export of these paths broke off: the node ends one where a path is damaged, so it is asked which are.
async fn broken_off(home: &Home, paths: Vec<StorePath>, error: ClientError) -> Failure {
    const INCOMPLETE: &str = "the export is not complete, and what was written of it cannot be used:";
    let question = StoreQuestion::Verify { paths, repair: false };
    let damaged = match relations::ask(home, &question).await {
        Ok(StoreAnswer::Verified { damaged, .. }) => damaged,
        Ok(_) => Vec::new(),
        Err(unknown) => {
            return Failure::Absent(format!(
                "{INCOMPLETE} {error}. Whether a path is damaged cannot be said: {unknown}"
            ));
        }
    };
    if damaged.is_empty() {
        return Failure::Absent(format!("{INCOMPLETE} {error}. No path of it is damaged"));
    }
    let mut text = INCOMPLETE.to_owned();
    for damage in damaged {
        text += "\n";
        text += &clean(&format!("{} is damaged: {}", damage.path, damage.reason));
    }
    Failure::Absent(
        text + "\n'tvix-node store verify --repair' fetches what is damaged again, where somebody has it",
    )
}

/// Adds what comes from standard input, and prints the paths.
pub async fn import(home: &Home, nar: Option<String>) -> Result<u8, Failure> {
    if io::stdin().is_terminal() {
        return Err(UsageError::new(
            "an export is read from standard input: give it a file (< FILE) or a pipe",
        )
        .into());
    }
    let infos = match nar {
        Some(name) => {
            check_name(&name, "choose another one")?;
            vec![add_archive(home, name, copy_in).await?]
        }
        None => {
            let client = connect_or_start(home).await?;
            upload(client.import(), copy_in).await?
        }
    };
    let lines: String = infos.iter().map(|info| format!("{}\n", info.path)).collect();
    print(lines.as_bytes())?;
    Ok(0)
}

fn copy_in(to: &mut dyn Write) -> Result<(), Failure> {
    io::copy(&mut io::stdin().lock(), to)?;
    Ok(())
}

/// Adds an archive under the path that follows from its content and this name.
async fn add_archive(
    home: &Home,
    name: String,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure> + Send + 'static,
) -> Result<PathInfo, Failure> {
    let client = connect_or_start(home).await?;
    let session = client.open_session(&session()).await?.session;
    // The path is kept until it is printed.
    let events = client.events(session).await?;
    let source = AddSource {
        name,
        method: AddedAs::Nar,
        fingerprint: None,
        expected: None,
        references: BTreeSet::new(),
    };
    let added = upload(ControlClient::add_source(&client, session, source), write).await;
    drop(events);
    added
}

/// Writes an upload on a thread that may block. Where the node takes no more, the end has its reason.
async fn upload<T: Send + 'static>(
    mut upload: Upload<T>,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure> + Send + 'static,
) -> Result<T, Failure> {
    let writing =
        tokio::task::spawn_blocking(
            move || match write(&mut upload).and_then(|()| Ok(upload.flush()?)) {
                Err(Failure::Stream(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(upload),
                written => written.map(|()| upload),
            },
        );
    let upload = writing.await.map_err(|error| Failure::Process {
        what: "go on reading",
        source: io::Error::other(error),
    })??;
    Ok(upload.finish().await?)
}

const fn session() -> OpenSession {
    OpenSession {
        version: CONTROL_VERSION,
        mode: SessionMode::Instantiate,
        keep_going: false,
        keep_failed: false,
        jobs: None,
        cores: 0,
        limits: BuildLimits::NONE,
        to: None,
        substituters: Vec::new(),
        trusted_public_keys: Vec::new(),
        private: false,
    }
}
