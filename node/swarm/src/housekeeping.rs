//! What goes on in the background: greeting, following changes, and throwing away what is over.

use std::sync::Arc;

use tokio::sync::mpsc;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::nix::store_path::StorePath;

use crate::core::{Core, blocking, lock};
use crate::events::Notice;
use crate::limits::{ADVERTISED_PAGE, CONTACTS_PAUSE, TIDY};
use crate::net::driver::{Command, NetEvent};
use crate::presence::Advertisement;
use crate::protocols::hello;
use crate::shelf::ShelfError;

/// Lists what this node has, with the presence secret of the moment.
pub(crate) async fn list_own(core: &Arc<Core>) -> Result<(), ShelfError> {
    let mut own = Advertisement::new(core.team.presence_secret(), core.team.members().len());
    let mut after: Option<StorePath> = None;
    loop {
        let from = after.clone();
        let page = core
            .ask_shelf(move |shelf| shelf.advertised(from.as_ref(), ADVERTISED_PAGE))
            .await?;
        let Some(last) = page.last().cloned() else { break };
        own.add(&page);
        after = Some(last);
    }
    *lock(&core.own) = own;
    core.publish.notify_one();
    Ok(())
}

/// Greets members this node has connected to, and notes who is gone.
pub(crate) async fn attend(core: Arc<Core>, mut events: mpsc::Receiver<NetEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            NetEvent::Dialled(peer) => {
                tokio::spawn(greet(core.clone(), peer));
            }
            NetEvent::Gone(peer) => core.gone(peer),
        }
    }
}

async fn greet(core: Arc<Core>, peer: NodeKey) {
    if let Err(error) = hello::greet(&core, peer).await {
        tracing::debug!(%peer, %error, "a member could not be greeted");
    }
}

/// Does what a change of the roster asks for.
pub(crate) async fn follow_roster(core: Arc<Core>) {
    let mut changes = core.team.changes();
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
            tracing::error!(%error, "what this node has cannot be advertised anew");
        }
        core.notify(Notice::RosterChanged);
        core.publish.notify_one();
        hello::greet_all(&core).await;
    }
}

/// Tells everyone when this node offers something else.
pub(crate) async fn follow_facts(core: Arc<Core>) {
    let mut facts = core.facts.subscribe();
    while facts.changed().await.is_ok() {
        hello::greet_all(&core).await;
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
        let (members, now) = (core.team.members(), core.team.now());
        lock(&core.table).expire(&members, now);
        lock(&core.allowance).retain(|peer| members.contains(peer));
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
