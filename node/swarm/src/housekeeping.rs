//! What goes on in the background: greeting, following changes, and throwing away what is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tvix_node_protocol::messages::Facts;
use tvix_node_protocol::nix::store_path::StorePath;
use tvix_node_protocol::presence::Epoch;

use crate::core::{Core, blocking, lock};
use crate::events::Notice;
use crate::limits::{
    ADVERTISED_PAGE, CONTACTS_PAUSE, PRESENCE_CHECK, PRESENCE_REST, PRESENCE_REST_LONGEST, TIDY,
};
use crate::net::network::{Command, NetEvent};
use crate::presence::Advertisement;
use crate::protocols::hello;
use crate::shelf::ShelfError;

/// Lists what this node has, with the presence secret of the moment: the first page at once, the rest in the
/// background.
pub(crate) async fn list_own(core: &Arc<Core>) -> Result<(), ShelfError> {
    let mut own = Advertisement::new(core.team.presence_secret(), core.team.members().len());
    own.begin_listing();
    let epoch = own.epoch();
    *lock(&core.own) = own;
    core.listed.send_replace(false);
    if let Some(last) = list_page(core, epoch, None).await? {
        tokio::spawn(list_rest(core.clone(), epoch, Some(last)));
    }
    core.publish.notify_one();
    Ok(())
}

/// Lists what comes after this path, or everything; what fails is tried again.
async fn list_rest(core: Arc<Core>, epoch: Epoch, mut last: Option<StorePath>) {
    let mut stopping = core.stopping.subscribe();
    let listing = async {
        loop {
            let begun = Instant::now();
            match list_page(&core, epoch, last.clone()).await {
                Ok(None) => break,
                Ok(next) => {
                    last = next;
                    rest(begun.elapsed()).await;
                }
                Err(error) => {
                    tracing::error!(%error, "what this node has cannot be listed; it is tried again");
                    tokio::time::sleep(PRESENCE_CHECK).await;
                }
            }
        }
        core.publish.notify_one();
    };
    tokio::select! {
        () = listing => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
}

/// Takes a page into what is advertised, and says where it ends. None: it was the last one, or everything is listed
/// anew because the secret has changed.
async fn list_page(
    core: &Arc<Core>,
    epoch: Epoch,
    after: Option<StorePath>,
) -> Result<Option<StorePath>, ShelfError> {
    let page = core
        .ask_shelf(move |shelf| shelf.advertised(after.as_ref(), ADVERTISED_PAGE))
        .await?;
    let mut own = lock(&core.own);
    if own.epoch() != epoch {
        return Ok(None);
    }
    let last = page.last().cloned();
    if last.is_some() {
        own.add_listed(&page);
    } else {
        own.end_listing();
        core.listed.send_replace(true);
    }
    Ok(last)
}

/// Leaves the machine to others after something in the background that took so long.
pub(crate) async fn rest(busy: Duration) {
    tokio::time::sleep((busy * PRESENCE_REST).min(PRESENCE_REST_LONGEST)).await;
}

/// Greets members this node has connected to, and notes who is gone.
pub(crate) async fn attend(core: Arc<Core>, mut events: mpsc::Receiver<NetEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            NetEvent::Dialled(peer) => hello::greet_soon(&core, peer),
            NetEvent::Gone(peer) => {
                core.gone(peer);
                // It is back already, and had said so before this was heard.
                if core.connected().contains(&peer) {
                    hello::greet_soon(&core, peer);
                }
            }
        }
    }
}

/// Does what a change of the roster asks for.
pub(crate) async fn follow_roster(core: Arc<Core>, mut changes: watch::Receiver<u64>) {
    while changes.changed().await.is_ok() {
        let waiting = core.team.to_renew();
        core.network.send(Command::MembersChanged { waiting }).await;
        let members = core.team.members();
        lock(&core.table).expire(&members, core.team.now());
        let epoch = core.team.presence_secret().epoch();
        let same_epoch = {
            let mut own = lock(&core.own);
            own.resize(members.len());
            own.epoch() == epoch
        };
        if !same_epoch && let Err(error) = list_own(&core).await {
            tracing::error!(%error, "what this node has cannot be advertised anew; it is tried again");
            tokio::spawn(list_rest(core.clone(), epoch, None));
        }
        core.notify(Notice::RosterChanged);
        core.publish.notify_one();
        hello::greet_all(&core);
    }
}

/// Tells everyone when this node offers something else.
pub(crate) async fn follow_facts(core: Arc<Core>, mut facts: watch::Receiver<Facts>) {
    while facts.changed().await.is_ok() {
        hello::greet_all(&core);
    }
}

/// Writes down where members can be reached, soon after it becomes known: a node that is killed finds its team
/// again.
pub(crate) async fn save_contacts(core: Arc<Core>) {
    loop {
        core.contacts.news().await;
        // Addresses come in groups.
        tokio::time::sleep(CONTACTS_PAUSE).await;
        let contacts = core.contacts.clone();
        match blocking(move || contacts.save()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "where members can be reached is not saved"),
            Err(error) => tracing::debug!(%error, "where members can be reached is not saved"),
        }
    }
}

/// Throws away what is over, from time to time.
pub(crate) async fn tidy(core: Arc<Core>) {
    let mut tick = tokio::time::interval(TIDY);
    loop {
        tick.tick().await;
        core.team.refresh();
        core.miss_nobody();
        hello::greet_unknown(&core);
        let (members, now) = (core.team.members(), core.team.now());
        lock(&core.table).expire(&members, now);
        lock(&core.allowance).retain(|peer| members.contains(peer));
        lock(&core.dial_backs).retain(|peer| members.contains(peer));
        lock(&core.keepers).retain(|peer| members.contains(peer), now);
        lock(&core.statements).retain(|peer| members.contains(peer));
        lock(&core.roster_statements).retain(|peer| members.contains(peer));
        core.relaying.tidy(Instant::now());
        lock(&core.introductions).retain(|_, turn| Arc::strong_count(turn) > 1);
        lock(&core.standing).expire(|peer| members.contains(peer), now);
        let core = core.clone();
        let written = blocking(move || {
            if let Err(error) = lock(&core.gate).forget(now) {
                tracing::warn!(%error, "old nonces are not forgotten");
            }
        });
        if let Err(error) = written.await {
            tracing::debug!(%error, "files of the team are not written");
        }
    }
}
