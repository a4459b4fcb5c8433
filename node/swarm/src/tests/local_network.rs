use super::*;
use std::net::{Ipv4Addr, UdpSocket};

/// Whether what is sent to a group comes back.
fn multicast_works() -> std::io::Result<()> {
    let group = Ipv4Addr::new(239, 255, 77, 77);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"x", (group, socket.local_addr()?.port()))?;
    socket.recv(&mut [0; 8]).map(drop)
}

#[tokio::test]
async fn members_on_one_network_find_each_other() {
    if let Err(error) = multicast_works() {
        println!("SKIPPED: finding members on the local network because multicast is off here: {error}");
        return;
    }
    let mut ann = TestNode::founder(1).await;
    let home = tempfile::tempdir().unwrap();
    let ticket = ann.ticket().await;
    let team = join(home.path(), &secret(2), &ticket, "bob", &Clock::system())
        .await
        .unwrap();
    // Both forget where the other is.
    std::fs::remove_file(team.folder().join("contacts")).unwrap();
    let swarm = ann.handle.swarm();
    ann.handle.shutdown().await;
    std::fs::remove_file(ann.home.path().join(swarm.to_string()).join("contacts")).unwrap();
    let with_mdns = |config: &mut Config| {
        config.mdns = true;
        config.listen = vec!["/ip4/0.0.0.0/tcp/0".into()];
    };
    let anns = Team::open(ann.home.path(), swarm).unwrap();
    ann = TestNode::start_with(1, ann.home, anns, honestly, with_mdns).await;
    let mut bob = TestNode::start_with(2, home, team, honestly, with_mdns).await;
    bob.meets(ann.key()).await;
    ann.meets(bob.key()).await;
}
